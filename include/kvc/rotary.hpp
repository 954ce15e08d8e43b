#pragma once
#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/shape.hpp"

namespace kvc::inline KVC_ABI {

namespace detail {

/// Sines and cosines of eight angles, with an error below 1e-7 for angles up to 1e8. Nothing but sums and products, of a
/// constant number of elements: compilers make vectors of it at -O2, and it is many times faster than the standard library.
inline void sine_cosine(const double* angles, float* sines, float* cosines) {
  // Adding 1.5 * 2^52 and taking it away rounds to a whole number.
  constexpr double Rounder = 6755399441055744.0, QuartersPerRadian = 0.63661977236758134308;
  constexpr double QuarterHigh = 1.57079632673412561417, QuarterLow = 6.07710050650619224932e-11;  // of pi / 2
  for (std::size_t i = 0; i < 8; ++i) {
    const double quarters = (angles[i] * QuartersPerRadian + Rounder) - Rounder;
    const double r = (angles[i] - quarters * QuarterHigh) - quarters * QuarterLow, s = r * r;
    const double sine = r * (1 + s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880)))));
    const double cosine = 1 + s * (-0.5 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320 - s * (1.0 / 3628800)))));
    // The last two binary digits of the number of quarters say which of the two it is, and its sign.
    const double halves = (quarters * 0.5 - 0.25 + Rounder) - Rounder, odd = quarters - 2 * halves;
    const double back = halves - 2 * ((halves * 0.5 - 0.25 + Rounder) - Rounder);
    sines[i] = static_cast<float>((sine + odd * (cosine - sine)) * (1 - 2 * back));
    cosines[i] = static_cast<float>((cosine + odd * (sine - cosine)) * (1 - 2 * (odd + back - 2 * odd * back)));
  }
}

}  // namespace detail

/// A rotation by some number of positions: cos and sin of every pair, for any number of rows.
struct Rotation {
  std::span<float> cosines, sines;  ///< of as many pairs as the rotation is about: all of a row's, or some

  /// Fills the tables for a rotation `delta` positions further (back if negative), of the pairs from `first` on.
  void set(const Rotary& rotary, double delta, std::size_t first = 0) const {
    double angles[8];
    float sine[8], cosine[8];
    for (std::size_t begin = 0; begin < sines.size(); begin += 8) {
      const std::size_t count = std::min<std::size_t>(8, sines.size() - begin);
      for (std::size_t i = 0; i < 8; ++i)
        angles[i] = delta * double(rotary.inv_freq[first + begin + std::min(i, count - 1)]);
      detail::sine_cosine(angles, sine, cosine);
      std::copy_n(sine, count, sines.begin() + static_cast<std::ptrdiff_t>(begin));
      std::copy_n(cosine, count, cosines.begin() + static_cast<std::ptrdiff_t>(begin));
    }
  }
  /// Turns those pairs of a row.
  void apply(const Rotary& rotary, std::span<float> row, std::size_t first = 0) const {
    const std::size_t step = rotary.interleaved ? 2 : 1;
    float *x = row.data() + first * step, *y = x + (rotary.interleaved ? 1 : rotary.inv_freq.size());
    for (std::size_t i = 0; i < sines.size(); ++i, x += step, y += step) {
      const float rotated = *x * cosines[i] - *y * sines[i];
      *y = *x * sines[i] + *y * cosines[i];
      *x = rotated;
    }
  }
};

/// Rotates a row that stands at one position so that it stands `delta` positions later (earlier if negative). Factors that
/// some models put on cos and sin are in the row already and are not applied again.
inline void rotate(std::span<float> row, const Rotary& rotary, double delta) {
  float cosines[64], sines[64];
  const std::size_t pairs = rotary.inv_freq.size();
  for (std::size_t begin = 0; begin < pairs; begin += 64) {
    const std::size_t count = std::min<std::size_t>(64, pairs - begin);
    const Rotation rotation{{cosines, count}, {sines, count}};
    rotation.set(rotary, delta, begin);
    rotation.apply(rotary, row, begin);
  }
}

}  // namespace kvc
