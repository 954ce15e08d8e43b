#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>

#include "kvc/codec/axes.hpp"
#include "kvc/kernels/dispatch.hpp"

namespace kvc::inline KVC_ABI {

/// Unquantized rows one after the other: what few keys take that have a block of their own, where a tile would have room for 16.
/// They are decoded as they are read.
class FewRowsCodec final : public Codec {
 public:
  FewRowsCodec(Dense format, std::size_t dim)
      : format_(format), axes_{Role::value, dim}, layout_(kernels::DenseLayout::of_values(format.type, dim)) {}

  std::string name() const override { return name_of(format_.type); }
  std::size_t dim() const override { return axes_.dim; }
  std::size_t block_bytes(std::size_t capacity) const override {
    return capacity * layout_.depth_stride * scalar_bytes(format_.type);
  }
  float limit() const override { return largest_magnitude(format_); }

  void encode(ConstRows rows, std::byte* block, std::size_t, std::size_t first) const override {
    kernels::active().dense_encode(layout_, block, axes_.rows(first, rows.count), axes_.source(rows));
  }
  void decode(const std::byte* block, std::size_t, std::size_t first, Rows<float> rows) const override {
    kernels::active().dense_decode(layout_, block, axes_.rows(first, rows.count), axes_.target(rows));
  }

 private:
  Dense format_;
  detail::Axes axes_;
  kernels::DenseLayout layout_;
};

/// Unquantized rows in f32, f16 or bf16. Keys lie channel-major in tiles of 16 tokens, values token-major.
class DenseCodec final : public Codec {
 public:
  DenseCodec(Dense format, Role role, std::size_t dim)
      : format_(format),
        axes_{role, dim},
        layout_(role == Role::key ? kernels::DenseLayout::of_keys(format.type, dim)
                                  : kernels::DenseLayout::of_values(format.type, dim)) {}

  std::string name() const override { return name_of(format_.type); }
  std::size_t dim() const override { return axes_.dim; }
  std::size_t block_bytes(std::size_t capacity) const override {
    const std::size_t elements =
        axes_.role == Role::key ? round_up(capacity, TileLanes) * axes_.dim : capacity * layout_.depth_stride;
    return elements * scalar_bytes(format_.type);
  }
  float limit() const override { return largest_magnitude(format_); }
  std::size_t range_granule() const override { return axes_.role == Role::key ? TileLanes : 1; }

  void encode(ConstRows rows, std::byte* block, std::size_t, std::size_t first) const override {
    kernels::active().dense_encode(layout_, block, axes_.rows(first, rows.count), axes_.source(rows));
  }
  void decode(const std::byte* block, std::size_t, std::size_t first, Rows<float> rows) const override {
    kernels::active().dense_decode(layout_, block, axes_.rows(first, rows.count), axes_.target(rows));
  }

  std::shared_ptr<const Codec> of_rows(std::size_t rows) const override {
    if (axes_.role == Role::value || rows > TileLanes / 2) return nullptr;
    return std::make_shared<FewRowsCodec>(format_, axes_.dim);
  }

  void scores(const std::byte* block, std::size_t, std::size_t first, std::size_t count,
              const kernels::Coefficients& queries, const kernels::Results& results) const override {
    kernels::active().dense_product(layout_, block, axes_.rows(first, count), queries, results);
  }
  void accumulate(const std::byte* block, std::size_t, std::size_t first, std::size_t count,
                  const kernels::Coefficients& weights, const kernels::Results& results) const override {
    kernels::active().dense_product(layout_, block, axes_.rows(first, count), weights, results);
  }

 private:
  Dense format_;
  detail::Axes axes_;
  kernels::DenseLayout layout_;
};

}  // namespace kvc::inline KVC_ABI
