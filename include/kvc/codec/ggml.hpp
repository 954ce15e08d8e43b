#pragma once
#include <cstddef>
#include <string>

#include "kvc/codec/codec.hpp"
#include "kvc/codec/ggml_blocks.hpp"

namespace kvc::inline KVC_ABI {

/// Rows in the GgmlBlocks format, keys and values alike: row r begins at byte r * row_bytes(), as in a cache of llama.cpp
/// that is not transposed. Scores and sums run on decoded tiles (Codec's own).
class GgmlCodec final : public Codec {
 public:
  GgmlCodec(GgmlBlocks format, std::size_t dim) : format_(format), dim_(dim) { format.validate(dim); }

  const GgmlBlocks& format() const { return format_; }
  std::string name() const override { return joined({"ggml-", block_size(format_.type).name}); }
  std::size_t dim() const override { return dim_; }
  std::size_t row_bytes() const {
    const GgmlBlockSize block = block_size(format_.type);
    return dim_ / block.elements * block.bytes;
  }
  std::size_t block_bytes(std::size_t capacity) const override { return capacity * row_bytes(); }
  /// Scales and minima are fp16, a scale being the largest element over 8 (q4_0), 16 (q5_0) or 127 (q8_0). Types with an
  /// exponent of their own saturate instead.
  float limit() const override {
    constexpr float Half = 65504;
    switch (format_.type) {
      case GgmlType::q4_0:
        return 8 * Half;
      case GgmlType::q5_0:
        return 16 * Half;
      case GgmlType::q8_0:
        return 127 * Half;
      case GgmlType::mxfp4:
      case GgmlType::nvfp4:
        return Codec::limit();
      default:
        return Half;
    }
  }

  void encode(ConstRows rows, std::byte* block, std::size_t, std::size_t first) const override {
    const auto [name, elements, bytes] = block_size(format_.type);
    const auto encode_block = ggml::functions(format_.type).encode;
    for (std::size_t r = 0; r < rows.count; ++r)
      for (std::size_t b = 0; b * elements < dim_; ++b)
        encode_block(rows.data + r * rows.stride + b * elements, at(block, first + r) + b * bytes);
  }
  void decode(const std::byte* block, std::size_t, std::size_t first, Rows<float> rows) const override {
    const auto [name, elements, bytes] = block_size(format_.type);
    const auto decode_block = ggml::functions(format_.type).decode;
    for (std::size_t r = 0; r < rows.count; ++r)
      for (std::size_t b = 0; b * elements < dim_; ++b)
        decode_block(at(block, first + r) + b * bytes, rows.data + r * rows.stride + b * elements);
  }

 private:
  unsigned char* at(std::byte* block, std::size_t row) const {
    return reinterpret_cast<unsigned char*>(block) + row * row_bytes();
  }
  const unsigned char* at(const std::byte* block, std::size_t row) const {
    return reinterpret_cast<const unsigned char*>(block) + row * row_bytes();
  }

  GgmlBlocks format_;
  std::size_t dim_;
};

}  // namespace kvc
