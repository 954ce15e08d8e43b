#pragma once
#include <cstring>
#include <memory>

#include "kvc/codec/codec.hpp"

namespace support {

using kvc::ConstRows;
using kvc::Rows;

/// What a user must write at least: rows as plain floats, halved.
class HalvingCodec final : public kvc::Codec {
 public:
  explicit HalvingCodec(std::size_t dim) : dim_(dim) {}
  std::string name() const override { return "halving"; }
  std::size_t dim() const override { return dim_; }
  std::size_t block_bytes(std::size_t capacity) const override { return capacity * dim_ * sizeof(float); }
  void encode(ConstRows rows, std::byte* block, std::size_t, std::size_t first) const override {
    for (std::size_t r = 0; r < rows.count; ++r)
      for (std::size_t c = 0; c < dim_; ++c) floats(block)[(first + r) * dim_ + c] = rows[r][c] / 2;
  }
  void decode(const std::byte* block, std::size_t, std::size_t first, Rows<float> rows) const override {
    for (std::size_t r = 0; r < rows.count; ++r)
      std::memcpy(rows[r].data(), block + (first + r) * dim_ * sizeof(float), dim_ * sizeof(float));
  }

 private:
  static float* floats(std::byte* block) { return reinterpret_cast<float*>(block); }
  std::size_t dim_;
};

/// A user's own description of it.
struct Halving {
  int times = 0;
};
inline std::shared_ptr<const kvc::Codec> make_codec(const Halving&, kvc::Role, std::size_t dim) {
  return std::make_shared<HalvingCodec>(dim);
}

}  // namespace support
