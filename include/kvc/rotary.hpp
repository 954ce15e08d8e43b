#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvc/shape.hpp"

namespace kvc::inline KVC_ABI {

namespace detail {

/// Sine and cosine with an error below 1e-7 for angles up to 1e8, several times faster than those of the standard library.
inline void sine_cosine(double angle, float& sine, float& cosine) {
  // Adding 1.5 * 2^52 rounds to a whole number, whose lowest bits are then those of the sum.
  constexpr double Rounder = 6755399441055744.0, QuartersPerRadian = 0.63661977236758134308;
  constexpr double QuarterHigh = 1.57079632673412561417, QuarterLow = 6.07710050650619224932e-11;  // of pi / 2
  const double sum = angle * QuartersPerRadian + Rounder, quarters = sum - Rounder;
  const double r = (angle - quarters * QuarterHigh) - quarters * QuarterLow, s = r * r;
  const double sin_r = r * (1 + s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880)))));
  const double cos_r = 1 + s * (-0.5 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320 - s * (1.0 / 3628800)))));
  const auto quarter = std::bit_cast<std::uint64_t>(sum) & 3;
  const double sine_here = quarter & 1 ? cos_r : sin_r, cosine_here = quarter & 1 ? sin_r : cos_r;
  sine = static_cast<float>(quarter & 2 ? -sine_here : sine_here);
  cosine = static_cast<float>(((quarter + 1) & 2) != 0 ? -cosine_here : cosine_here);
}

}  // namespace detail

/// A rotation by some number of positions: cos and sin of every pair, for any number of rows.
struct Rotation {
  std::span<float> cosines, sines;  ///< [rotary.inv_freq.size()] each

  /// Fills the tables for a rotation `delta` positions further (back if negative).
  void set(const Rotary& rotary, double delta) const {
    for (std::size_t i = 0; i < rotary.inv_freq.size(); ++i)
      detail::sine_cosine(delta * double(rotary.inv_freq[i]), sines[i], cosines[i]);
  }
  void apply(const Rotary& rotary, std::span<float> row) const {
    const std::size_t pairs = rotary.inv_freq.size(), x_step = rotary.interleaved ? 2 : 1;
    float *x = row.data(), *y = row.data() + (rotary.interleaved ? 1 : pairs);
    for (std::size_t i = 0; i < pairs; ++i, x += x_step, y += x_step) {
      const float rotated = *x * cosines[i] - *y * sines[i];
      *y = *x * sines[i] + *y * cosines[i];
      *x = rotated;
    }
  }
};

/// Rotates a row that stands at one position so that it stands `delta` positions later (earlier if negative). Factors that
/// some models put on cos and sin are in the row already and are not applied again.
inline void rotate(std::span<float> row, const Rotary& rotary, double delta) {
  const std::size_t pairs = rotary.inv_freq.size();
  for (std::size_t i = 0; i < pairs; ++i) {
    float sine, cosine;
    detail::sine_cosine(delta * double(rotary.inv_freq[i]), sine, cosine);
    float& x = row[rotary.interleaved ? 2 * i : i];
    float& y = row[rotary.interleaved ? 2 * i + 1 : i + pairs];
    const float rotated = x * cosine - y * sine;
    y = x * sine + y * cosine;
    x = rotated;
  }
}

}  // namespace kvc
