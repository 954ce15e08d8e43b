#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kvc/half.hpp"
#include "kvc/kernels/layout.hpp"
#include "kvc/kernels/table.hpp"
#include "kvc/simd/isa.hpp"

/// Naive double-precision references for the kernels, written from their definitions without regard to speed.
namespace oracle {

using namespace kvc::kernels;
using kvc::Scalar;

inline constexpr double Unit = 1.0 / (1 << 24);  // relative rounding error of one float operation
inline constexpr float Infinity = std::numeric_limits<float>::infinity();
inline constexpr float NotANumber = std::numeric_limits<float>::quiet_NaN();

/// Runs body() at every level of this machine.
template <class Body>
void at_every_isa(Body body) {
  for (kvc::Isa isa : kvc::available_isas()) {
    kvc::ScopedIsa scoped(isa);
    body(isa);
  }
}

inline std::vector<float> normal_floats(std::size_t count, unsigned seed, float offset = 0) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator) + offset;
  return values;
}

/// The worst |got - expected| / bound over all elements: at most 1 where every element is within its bound. Unlike NaNs
/// and infinities count as infinitely far.
class Worst {
 public:
  void add(float got, double expected, double bound) {
    const double distance = std::isfinite(expected) ? std::fabs(got - expected) / bound
                            : std::isnan(expected)  ? (std::isnan(got) ? 0 : HUGE_VAL)
                                                    : (got == expected ? 0 : HUGE_VAL);
    if (!(distance <= value_)) value_ = std::isnan(distance) ? HUGE_VAL : distance;
  }
  double value() const { return value_; }

 private:
  double value_ = 0;
};

/// A sum of products and the sum of their magnitudes, which its error bound is relative to.
struct Sum {
  double value = 0, magnitude = 0;
  void add(double term) {
    value += term;
    magnitude += std::fabs(term);
  }
};

inline float read_scalar(Scalar type, const unsigned char* block, std::size_t index) {
  if (type == Scalar::f32) {
    float value;
    std::memcpy(&value, block + 4 * index, 4);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, block + 2 * index, 2);
  return type == Scalar::f16 ? kvc::from_half(bits) : kvc::from_bfloat(bits);
}

inline float rounded_to(Scalar type, float value) {
  if (type == Scalar::f32) return value;
  return type == Scalar::f16 ? kvc::from_half(kvc::to_half(value)) : kvc::from_bfloat(kvc::to_bfloat(value));
}

inline float dense_element(const DenseLayout& layout, const unsigned char* block, std::size_t p, std::size_t lane) {
  return read_scalar(layout.type, block, layout.index(p, lane));
}

struct PackedElement {
  std::uint32_t code;
  float scale, minimum;
  double value() const { return double(code) * scale + minimum; }
};

inline PackedElement packed_element(const PackedLayout& layout, const unsigned char* block, std::size_t p,
                                    std::size_t lane) {
  const PackedLayout::CodePlace place = layout.code_place(p, lane);
  std::vector<std::uint32_t> unit((layout.unit_rows() - 1) * kvc::TileLanes + 1);
  std::memcpy(unit.data(), block + 4 * place.dword, 4 * unit.size());
  const std::size_t index = layout.metadata_index(p, lane);
  return {layout.code_at(unit.data(), {0, place.plane}),
          read_scalar(layout.metadata, block + layout.scale_offset(), index),
          read_scalar(layout.metadata, block + layout.minimum_offset(), index)};
}

/// Code, scale and minimum of one group, straight from the definition in kvc::GroupQuant.
inline std::vector<PackedElement> quantized_group(const std::vector<float>& group, unsigned bits, Scalar metadata) {
  float low = group[0], high = group[0];
  for (float x : group) {
    low = std::fmin(low, x);
    high = std::fmax(high, x);
  }
  const float levels = static_cast<float>((1u << bits) - 1);
  const float scale = rounded_to(metadata, (high - low) / levels), minimum = rounded_to(metadata, low);
  std::vector<PackedElement> elements;
  for (float x : group) {
    const float ratio = std::fmax(0.0f, std::fmin(levels, (x - minimum) / scale));
    const float code = scale > 0 ? std::nearbyint(ratio) : 0.0f;
    elements.push_back({static_cast<std::uint32_t>(code), scale, minimum});
  }
  return elements;
}

}  // namespace oracle
