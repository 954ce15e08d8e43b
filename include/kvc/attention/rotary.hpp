#pragma once
#include <cmath>
#include <cstddef>
#include <span>

#include "kvc/shape.hpp"

namespace kvc::inline KVC_ABI {

/// Rotates a row that stands at one position so that it stands `delta` positions later (earlier if negative). Factors that
/// some models put on cos and sin are in the row already and are not applied again.
inline void rotate(std::span<float> row, const Rotary& rotary, double delta) {
  const std::size_t pairs = rotary.inv_freq.size();
  for (std::size_t i = 0; i < pairs; ++i) {
    const double angle = delta * double(rotary.inv_freq[i]);
    const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
    float& x = row[rotary.interleaved ? 2 * i : i];
    float& y = row[rotary.interleaved ? 2 * i + 1 : i + pairs];
    const float rotated = x * cosine - y * sine;
    y = x * sine + y * cosine;
    x = rotated;
  }
}

}  // namespace kvc
