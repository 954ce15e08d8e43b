#pragma once
#include <algorithm>
#include <cstddef>
#include <string>

#include "kvc/codec/codec.hpp"
#include "kvc/kernels/dispatch.hpp"

namespace kvc::inline KVC_ABI {

/// Unquantized rows in f32, f16 or bf16. Keys lie channel-major in tiles of 16 tokens, values token-major.
class DenseCodec final : public Codec {
 public:
  DenseCodec(Dense format, Role role, std::size_t dim)
      : format_(format),
        role_(role),
        dim_(dim),
        layout_(role == Role::key ? kernels::DenseLayout::of_keys(format.type, dim)
                                  : kernels::DenseLayout::of_values(format.type, dim)) {}

  std::string name() const override {
    return format_.type == Scalar::f32 ? "f32" : format_.type == Scalar::f16 ? "f16" : "bf16";
  }
  std::size_t dim() const override { return dim_; }
  std::size_t block_bytes(std::size_t capacity) const override {
    const std::size_t elements =
        role_ == Role::key ? round_up(capacity, TileLanes) * dim_ : capacity * layout_.depth_stride;
    return elements * scalar_bytes(format_.type);
  }
  std::size_t range_granule() const override { return role_ == Role::key ? TileLanes : 1; }

  void encode(ConstRows rows, std::byte* block, std::size_t, std::size_t first) const override {
    kernels::active().dense_encode(layout_, block, window(first, rows.count), source(rows));
  }
  void decode(const std::byte* block, std::size_t, std::size_t first, Rows<float> rows) const override {
    kernels::active().dense_decode(layout_, block, window(first, rows.count), target(rows));
  }

  void scores(const std::byte* block, std::size_t, std::size_t first, std::size_t count,
              const kernels::Coefficients& queries, const kernels::Results& results) const override {
    kernels::active().dense_product(layout_, block, {first, count, 0, dim_}, queries, results);
  }
  void accumulate(const std::byte* block, std::size_t, std::size_t first, std::size_t count,
                  const kernels::Coefficients& weights, const kernels::Results& results) const override {
    kernels::active().dense_product(layout_, block, {0, dim_, first, count}, weights, results);
  }

 private:
  kernels::Area window(std::size_t first, std::size_t count) const {
    return role_ == Role::key ? kernels::Area{first, count, 0, dim_} : kernels::Area{0, dim_, first, count};
  }
  kernels::ConstFloatMatrix source(ConstRows rows) const {
    return role_ == Role::key ? kernels::ConstFloatMatrix{rows.data, 1, rows.stride}
                              : kernels::ConstFloatMatrix{rows.data, rows.stride, 1};
  }
  kernels::FloatMatrix target(Rows<float> rows) const {
    return role_ == Role::key ? kernels::FloatMatrix{rows.data, 1, rows.stride}
                              : kernels::FloatMatrix{rows.data, rows.stride, 1};
  }

  Dense format_;
  Role role_;
  std::size_t dim_;
  kernels::DenseLayout layout_;
};

}  // namespace kvc
