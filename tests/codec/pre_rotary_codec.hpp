#pragma once
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvc/codec/codec.hpp"
#include "kvc/rotary.hpp"

/// Keys are encoded as they were before the rotary embedding, where each channel keeps its sign and size from token to token
/// (KVQuant). A block holds the positions of its rows behind another codec's block, and reading turns the keys back.
class PreRotaryCodec final : public kvc::Codec {
 public:
  PreRotaryCodec(std::shared_ptr<const kvc::Codec> inner, kvc::Rotary rotary)
      : inner_(std::move(inner)), rotary_(std::move(rotary)) {}

  std::string name() const override { return "pre-rotary-" + inner_->name(); }
  std::size_t dim() const override { return inner_->dim(); }
  std::size_t block_bytes(std::size_t capacity) const override {
    return inner_->block_bytes(capacity) + capacity * sizeof(kvc::Position);
  }
  std::size_t granule() const override { return inner_->granule(); }

  void encode(kvc::ConstRows, std::byte*, std::size_t, std::size_t) const override {
    kvc::fail(kvc::ErrorCode::incompatible, "pre-rotary codec: keys without positions");
  }
  void encode_at(kvc::ConstRows rows, std::span<const kvc::Position> positions, std::byte* block, std::size_t capacity,
                 std::size_t first) const override {
    std::vector<float> turned(rows.count * dim());
    for (std::size_t r = 0; r < rows.count; ++r) {
      const std::span<float> row(turned.data() + r * dim(), dim());
      std::copy(rows[r].begin(), rows[r].end(), row.begin());
      kvc::rotate(row, rotary_, -double(positions[r]));
    }
    inner_->encode({turned.data(), rows.count, dim()}, block, capacity, first);
    std::memcpy(positions_in(block, capacity, first), positions.data(), positions.size_bytes());
  }
  void decode(const std::byte* block, std::size_t capacity, std::size_t first, kvc::Rows<float> rows) const override {
    inner_->decode(block, capacity, first, rows);
    for (std::size_t r = 0; r < rows.count; ++r) {
      kvc::Position position;
      std::memcpy(&position, positions_in(const_cast<std::byte*>(block), capacity, first + r), sizeof position);
      kvc::rotate(rows[r], rotary_, double(position));
    }
  }

 private:
  std::byte* positions_in(std::byte* block, std::size_t capacity, std::size_t row) const {
    return block + inner_->block_bytes(capacity) + row * sizeof(kvc::Position);
  }

  std::shared_ptr<const kvc::Codec> inner_;
  kvc::Rotary rotary_;
};
