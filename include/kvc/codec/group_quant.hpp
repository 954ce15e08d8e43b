#pragma once
#include <cstddef>
#include <string>

#include "kvc/codec/codec.hpp"
#include "kvc/codec/group_fit.hpp"
#include "kvc/kernels/dispatch.hpp"

namespace kvc::inline KVC_ABI {

/// Rows in the GroupQuant format; scores and sums are computed from the codes.
class GroupQuantCodec final : public Codec {
 public:
  GroupQuantCodec(GroupQuant format, Role role, std::size_t dim) : format_(format), role_(role), dim_(dim) {
    format.validate(dim);
  }

  const GroupQuant& format() const { return format_; }
  std::string name() const override {
    return std::string("q") + std::to_string(format_.bits) +
           (format_.axis == Axis::channel ? "-channel-g" : "-token-g") + std::to_string(format_.group) +
           (format_.metadata == Scalar::f32 ? "-f32" : "") +
           (format_.fit == Fit::min_max ? "" : std::string("-") + name_of(format_.fit));
  }
  std::size_t dim() const override { return dim_; }
  std::size_t block_bytes(std::size_t capacity) const override { return layout(capacity).bytes(); }
  std::size_t granule() const override { return format_.axis == Axis::channel ? format_.group : 1; }
  std::size_t range_granule() const override {
    const kernels::PackedLayout any = layout(granule());
    return role_ == Role::key ? any.lane_granule() : any.depth_granule();
  }

  void encode(ConstRows rows, std::byte* block, std::size_t capacity, std::size_t first) const override {
    const kernels::ConstFloatMatrix source = role_ == Role::key ? kernels::ConstFloatMatrix{rows.data, 1, rows.stride}
                                                                : kernels::ConstFloatMatrix{rows.data, rows.stride, 1};
    kernels::active().packed_encode(layout(capacity), block, window(first, rows.count), source);
    if (format_.fit != Fit::min_max)
      detail::GroupFit(layout(capacity), format_.fit, block).refine(window(first, rows.count), source);
  }
  void decode(const std::byte* block, std::size_t capacity, std::size_t first, Rows<float> rows) const override {
    const kernels::FloatMatrix target = role_ == Role::key ? kernels::FloatMatrix{rows.data, 1, rows.stride}
                                                           : kernels::FloatMatrix{rows.data, rows.stride, 1};
    kernels::active().packed_decode(layout(capacity), block, window(first, rows.count), target);
  }
  void scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
              const kernels::Coefficients& queries, const kernels::Results& results) const override {
    kernels::active().packed_product(layout(capacity), block, window(first, count), queries, results);
  }
  void accumulate(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                  const kernels::Coefficients& weights, const kernels::Results& results) const override {
    kernels::active().packed_product(layout(capacity), block, window(first, count), weights, results);
  }

  /// Where one element's code, scale and minimum lie in a block: what tests and engines with their own kernels read.
  kernels::PackedLayout layout(std::size_t capacity) const {
    // Elements of a group follow each other along the tokens (channel axis) or the channels; tokens are the lanes of keys.
    const bool along_lanes = (format_.axis == Axis::channel) == (role_ == Role::key);
    return {.bits = format_.bits,
            .along = along_lanes ? kernels::GroupsAlong::lanes : kernels::GroupsAlong::depth,
            .group = format_.group,
            .lanes = role_ == Role::key ? capacity : dim_,
            .depth = role_ == Role::key ? dim_ : capacity,
            .metadata = format_.metadata};
  }

 private:
  kernels::Area window(std::size_t first, std::size_t count) const {
    return role_ == Role::key ? kernels::Area{first, count, 0, dim_} : kernels::Area{0, dim_, first, count};
  }

  GroupQuant format_;
  Role role_;
  std::size_t dim_;
};

}  // namespace kvc
