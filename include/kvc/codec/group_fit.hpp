#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kvc/format.hpp"
#include "kvc/half.hpp"
#include "kvc/kernels/table.hpp"

namespace kvc::inline KVC_ABI::detail {

/// The fits of GroupQuant beyond min_max: replaces minima and codes of groups that packed_encode has just written; scales
/// stay. Element by element, since only encoding pays for it.
class GroupFit {
 public:
  GroupFit(const kernels::PackedLayout& layout, Fit fit, std::byte* block)
      : layout_(layout), fit_(fit), block_(block) {}

  /// The window covers whole groups; source element (0, 0) is its first.
  void refine(const kernels::Area& window, const kernels::ConstFloatMatrix& source) const {
    const bool along_lanes = layout_.along == kernels::GroupsAlong::lanes;
    const std::size_t p_step = along_lanes ? 1 : layout_.group, lane_step = along_lanes ? layout_.group : 1;
    for (std::size_t p = 0; p < window.depth_count; p += p_step)
      for (std::size_t lane = 0; lane < window.lanes; lane += lane_step)
        refine_group({layout_, window.depth_begin + p, window.lane_begin + lane,
                      source.data + p * source.depth_stride + lane * source.lane_stride,
                      along_lanes ? source.lane_stride : source.depth_stride});
  }

 private:
  /// One group: where its first element lies in the block, and its elements as floats.
  struct Group {
    const kernels::PackedLayout& layout;
    std::size_t p, lane;
    const float* first;
    std::size_t stride;

    float operator[](std::size_t e) const { return first[e * stride]; }
    kernels::PackedLayout::CodePlace place(std::size_t e) const {
      return layout.along == kernels::GroupsAlong::lanes ? layout.code_place(p, lane + e)
                                                         : layout.code_place(p + e, lane);
    }
  };

  void refine_group(const Group& group) const {
    const std::size_t index = layout_.metadata_index(group.p, group.lane);
    const float scale = read(layout_.scale_offset(), index);
    if (!(scale > 0)) return;  // constant: exact already
    const float minimum = fit_ == Fit::whole_zero ? whole_zero(group, scale) : half_quadratic(group, scale);
    const float stored = write(layout_.minimum_offset(), index, minimum);
    for (std::size_t e = 0; e < layout_.group; ++e) put(group.place(e), code(group[e], scale, stored));
  }

  /// KVTuner rounds x / scale less the whole zero point.
  float whole_zero(const Group& group, float scale) const {
    float least = group[0];
    for (std::size_t e = 1; e < layout_.group; ++e) least = std::min(least, group[e]);
    return std::nearbyint(least / scale) * scale;
  }

  /// Each step splits the errors into a sparse part, by the shrinkage operator of |x|^0.7, and a rest whose mean moves
  /// the minimum: minimum = mean(x - shrink(x - read) - code * scale).
  float half_quadratic(const Group& group, float scale) const {
    constexpr int Steps = 20;
    constexpr float Beta = 10, Norm = 0.7f;
    float minimum = read(layout_.minimum_offset(), layout_.metadata_index(group.p, group.lane));
    for (int step = 0; step < Steps; ++step) {
      double sum = 0;
      for (std::size_t e = 0; e < layout_.group; ++e) {
        const float quantized = code(group[e], scale, minimum) * scale, error = group[e] - (quantized + minimum);
        const float magnitude = std::fabs(error);
        const float shrunk = std::max(magnitude - std::pow(magnitude, Norm - 1) / Beta, 0.0f);
        sum += static_cast<double>(group[e] - std::copysign(shrunk, error) - quantized);
      }
      minimum = static_cast<float>(sum / static_cast<double>(layout_.group));
    }
    return minimum;
  }

  /// A NaN gets the highest code, as from the kernels.
  float code(float x, float scale, float minimum) const {
    const auto top = static_cast<float>((1u << layout_.bits) - 1);
    const float ratio = fit_ == Fit::whole_zero ? x / scale - minimum / scale : (x - minimum) / scale;
    return std::nearbyint(ratio < top ? std::max(ratio, 0.0f) : top);
  }
  void put(const kernels::PackedLayout::CodePlace& place, float code) const {
    const auto number = static_cast<std::uint32_t>(code);
    const kernels::PackedLayout::PlanePlace bit = layout_.plane_place(place.plane);
    put_bits(place.dword + bit.row * TileLanes, bit.shift, layout_.low_bits(), number);
    if (layout_.bits == 3) put_bits(place.dword + bit.high_row * TileLanes, bit.high_shift, 1, number >> 2);
  }
  void put_bits(std::size_t place, unsigned shift, unsigned bits, std::uint32_t value) const {
    const std::uint32_t mask = (1u << bits) - 1;
    std::uint32_t dword;
    std::memcpy(&dword, block_ + 4 * place, sizeof dword);
    dword = (dword & ~(mask << shift)) | (value & mask) << shift;
    std::memcpy(block_ + 4 * place, &dword, sizeof dword);
  }

  float read(std::size_t offset, std::size_t index) const {
    const std::byte* from = block_ + offset + index * scalar_bytes(layout_.metadata);
    if (layout_.metadata == Scalar::f32) {
      float value;
      std::memcpy(&value, from, sizeof value);
      return value;
    }
    std::uint16_t half;
    std::memcpy(&half, from, sizeof half);
    return from_half(half);
  }
  /// Returns what will be read back.
  float write(std::size_t offset, std::size_t index, float value) const {
    std::byte* to = block_ + offset + index * scalar_bytes(layout_.metadata);
    const std::uint16_t half = to_half(value);
    if (layout_.metadata == Scalar::f32)
      std::memcpy(to, &value, sizeof value);
    else
      std::memcpy(to, &half, sizeof half);
    return read(offset, index);
  }

  kernels::PackedLayout layout_;
  Fit fit_;
  std::byte* block_;
};

}  // namespace kvc::detail
