#pragma once
#include <cstdint>

#include "kvc/format.hpp"
#include "kvc/half.hpp"

namespace kvc::inline KVC_ABI::kernels {

/// The scale and minimum of a group as they are stored.
struct GroupRange {
  float scale, minimum;
};

/// The largest value of type f16 that is at most `value`, but always a finite one.
inline float half_below(float value) {
  if (!(value < 65504)) return 65504;
  if (value <= -65504) return -65504;
  const std::uint16_t half = to_half(value);
  if (from_half(half) <= value) return from_half(half);
  if ((half & 0x7fff) == 0) return from_half(0x8001);
  return from_half(static_cast<std::uint16_t>(half & 0x8000 ? half + 1 : half - 1));
}

/// Scale and minimum for codes of `bits` bits of a group whose elements are `low` to `high`, where the rounded ones would make
/// the codes of its ends wrong by more than half a step, or would not be finite. The minimum is rounded down, and the scale,
/// taken from that minimum, is rounded up, so the codes cover the group. Elements beyond what the format carries are clamped.
inline GroupRange covering_range(float low, float high, unsigned bits, Scalar metadata) {
  const double levels = (1u << bits) - 1;
  if (metadata == Scalar::f32) {
    const double most = double(largest_magnitude(Scalar::f32)) / levels;  // codes times the scale must be finite too
    const double scale = (double(high) - double(low)) / levels;
    return {static_cast<float>(scale < most ? scale : most), low};
  }
  const float minimum = half_below(low);
  const double scale = (double(high) - double(minimum)) / levels;
  return {scale > 0 ? -half_below(static_cast<float>(-scale)) : 0.0f, minimum};
}

}  // namespace kvc::kernels
