#pragma once
#include <cstddef>
#include <memory>
#include <string>

#include "kvc/codec/axes.hpp"
#include "kvc/codec/group_fit.hpp"
#include "kvc/kernels/dispatch.hpp"

namespace kvc::inline KVC_ABI {

/// Rows in the GroupQuant format; scores and sums are computed from the codes.
class GroupQuantCodec final : public Codec {
 public:
  /// Where the kernels come from: a pointer, because g++ compiles what virtual functions name for every class that it sees,
  /// and a program that makes no such codec shall not contain its kernels.
  using Kernels = const kernels::PackedTable& (*)();

  GroupQuantCodec(GroupQuant format, Role role, std::size_t dim, Kernels kernels = kernels::active_packed)
      : format_(format), axes_{role, dim}, kernels_(kernels) {
    format.validate(dim);
  }

  const GroupQuant& format() const { return format_; }
  std::string name() const override {
    const bool plain = format_.fit == Fit::min_max;
    return joined({"q", format_.bits, format_.axis == Axis::channel ? "-channel-g" : "-token-g", format_.group,
                   format_.metadata == Scalar::f32 ? "-f32" : "", plain ? "" : "-", plain ? "" : name_of(format_.fit)});
  }
  std::size_t dim() const override { return axes_.dim; }
  std::size_t block_bytes(std::size_t capacity) const override { return layout(capacity).bytes(); }
  std::size_t granule() const override { return format_.axis == Axis::channel ? format_.group : 1; }
  /// Scales and minima are stored as metadata: of elements up to this, none of them overflows. Fits other than min_max may
  /// move a minimum below the least element, by at most what the elements are apart.
  float limit() const override {
    const float largest = largest_magnitude(format_);
    return format_.fit == Fit::min_max ? largest : largest / 4;
  }
  std::size_t range_granule() const override {
    const kernels::PackedLayout any = layout(granule());
    return axes_.role == Role::key ? any.lane_granule() : any.depth_granule();
  }

  std::shared_ptr<const Codec> of_rows(std::size_t rows) const override {
    GroupQuant format = format_;
    format.group = rows;
    return std::make_shared<GroupQuantCodec>(format, axes_.role, axes_.dim, kernels_);
  }

  void encode(ConstRows rows, std::byte* block, std::size_t capacity, std::size_t first) const override {
    kernels_().encode(layout(capacity), block, axes_.rows(first, rows.count), axes_.source(rows));
    if (format_.fit != Fit::min_max)
      detail::GroupFit(layout(capacity), format_.fit, block).refine(axes_.rows(first, rows.count), axes_.source(rows));
  }
  void decode(const std::byte* block, std::size_t capacity, std::size_t first, Rows<float> rows) const override {
    kernels_().decode(layout(capacity), block, axes_.rows(first, rows.count), axes_.target(rows));
  }
  void scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
              const kernels::Coefficients& queries, const kernels::Results& results) const override {
    kernels_().product(layout(capacity), block, axes_.rows(first, count), queries, results);
  }
  void accumulate(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                  const kernels::Coefficients& weights, const kernels::Results& results) const override {
    kernels_().product(layout(capacity), block, axes_.rows(first, count), weights, results);
  }

  /// Where one element's code, scale and minimum lie in a block: what tests and engines with their own kernels read.
  kernels::PackedLayout layout(std::size_t capacity) const {
    // Elements of a group follow each other along the tokens (channel axis) or the channels; tokens are the lanes of keys.
    const bool along_lanes = (format_.axis == Axis::channel) == (axes_.role == Role::key);
    return {.bits = format_.bits,
            .along = along_lanes ? kernels::GroupsAlong::lanes : kernels::GroupsAlong::depth,
            .group = format_.group,
            .lanes = axes_.role == Role::key ? capacity : axes_.dim,
            .depth = axes_.role == Role::key ? axes_.dim : capacity,
            .metadata = format_.metadata};
  }

 private:
  GroupQuant format_;
  detail::Axes axes_;
  Kernels kernels_;
};

}  // namespace kvc::inline KVC_ABI
