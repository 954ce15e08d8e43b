#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "kvc/shape.hpp"
#include "kvc/storage/column.hpp"
#include "kvc/storage/multiplicity.hpp"
#include "kvc/storage/position_list.hpp"
#include "kvc/storage/runs.hpp"
#include "kvc/storage/turn_list.hpp"

namespace kvc::inline KVC_ABI {

/// What a head knows of its slots besides their rows: the position of each, how far its key is to be turned for it, how many tokens
/// it stands for, its class of precision, and the columns that policies keep. Slots stand in ascending position. Functions whose names begin with `reserve` may throw
/// and change nothing that can be seen; the change itself then asks for no memory.
class SlotTable {
 public:
  /// `defaults`: for every column of a policy, the bytes a new slot starts with.
  explicit SlotTable(std::vector<std::vector<std::byte>> defaults)
      : defaults_(std::move(defaults)), columns_(defaults_.size()) {}

  std::size_t size() const { return positions_.size(); }
  Position position(std::size_t slot) const { return positions_[slot]; }
  const PositionList& positions() const { return positions_; }
  /// How far the keys of slots are to be turned, which stand elsewhere than their keys were rotated for.
  const TurnList& turns() const { return turns_; }
  /// The positions take few bytes from now on (see PositionList::pack).
  void pack() { positions_.pack(); }
  /// Tokens that each slot stands for; empty while that is 1 everywhere.
  const Multiplicity& multiplicity() const { return multiplicity_; }
  /// Class of precision of every slot; empty while all are of class 0.
  std::span<const std::uint8_t> precision() const { return precision_; }
  std::byte* column(std::size_t index) { return columns_[index].data(); }
  const std::byte* column(std::size_t index) const { return columns_[index].data(); }

  void set_multiplicity(std::size_t slot, float tokens) { multiplicity_.set(slot, tokens, size()); }
  void set_precision(std::size_t slot, std::uint8_t number) {
    if (precision_.empty() && number == 0) return;
    if (precision_.empty()) fill(precision_, std::uint8_t{0});
    precision_[slot] = number;
  }

  void reserve_append(std::span<const Position> positions) {
    const auto grow = [](auto& column, std::size_t by) {
      const std::size_t needed = column.size() + by;
      if (column.capacity() < needed) column.reserve(std::max(needed, 2 * column.size()));
    };
    positions_.reserve_append(positions);
    turns_.reserve_append();
    multiplicity_.reserve_append(positions.size());
    if (!precision_.empty()) grow(precision_, positions.size());
    for (std::size_t c = 0; c < columns_.size(); ++c) grow(columns_[c], positions.size() * defaults_[c].size());
  }
  void append(std::span<const Position> positions) noexcept {
    for (const Position position : positions) positions_.push_back(position);
    turns_.append(positions.size());
    multiplicity_.resize(size());
    if (!precision_.empty()) precision_.resize(size(), 0);
    for (std::size_t c = 0; c < columns_.size(); ++c)
      for (std::size_t i = 0; i < positions.size(); ++i)
        columns_[c].insert(columns_[c].end(), defaults_[c].begin(), defaults_[c].end());
  }

  void reserve_keep(std::span<const std::uint8_t> flags) { positions_.reserve_keep(flags); }
  /// Drops the slots whose flag is 0.
  void keep(std::span<const std::uint8_t> flags) noexcept {
    positions_.keep(flags);
    turns_.keep(flags);
    const std::size_t kept =
        detail::for_each_moved_run(flags, [&](std::size_t from, std::size_t to, std::size_t count) {
          multiplicity_.move(from, to, count);
          if (!precision_.empty()) std::memmove(&precision_[to], &precision_[from], count);
          for (std::size_t c = 0; c < columns_.size(); ++c)
            if (const std::size_t bytes = defaults_[c].size())
              std::memmove(columns_[c].data() + to * bytes, columns_[c].data() + from * bytes, count * bytes);
        });
    resize_columns(kept);
  }
  /// Drops the newest slots, so that `slots` stay.
  void truncate(std::size_t slots) noexcept {
    positions_.truncate(slots);
    turns_.truncate(slots);
    resize_columns(slots);
  }
  /// Takes back what was appended to `slots` slots, whose positions were their numbers or not (`identity`).
  void revert(std::size_t slots, bool identity) noexcept {
    positions_.revert(slots, identity);
    turns_.truncate(slots);
    resize_columns(slots);
  }
  /// The positions of slots [first, last) become `change` more, and their keys are to be turned for that. Throws what allocation
  /// throws, before anything has changed.
  void shift(std::size_t first, std::size_t last, std::int32_t change) {
    PositionList positions = positions_;
    positions.shift(first, last, change);
    positions.reserve(positions_.capacity());
    turns_.add(first, last, change, size());
    positions_ = std::move(positions);
  }

  /// An empty table becomes one of these slots, whose columns hold what new slots start with.
  void restore(PositionList positions, TurnList turns, Multiplicity multiplicity, std::vector<std::uint8_t> precision) {
    positions_ = std::move(positions);
    turns_ = std::move(turns);
    multiplicity_ = std::move(multiplicity);
    precision_ = std::move(precision);
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      const std::size_t bytes = defaults_[c].size();
      columns_[c].resize(size() * bytes);
      for (std::size_t slot = 0; bytes != 0 && slot < size(); ++slot)
        std::memcpy(columns_[c].data() + slot * bytes, defaults_[c].data(), bytes);
    }
  }

  /// Room for `slots` slots; `reorders`: evictions will break the order of the positions.
  void reserve(std::size_t slots, bool reorders) {
    if (reorders) positions_.reserve(slots);
    multiplicity_.reserve(slots);
    for (std::size_t c = 0; c < columns_.size(); ++c) columns_[c].reserve(slots * defaults_[c].size());
  }
  /// As much room as another table has.
  void reserve_as(const SlotTable& other) {
    positions_.reserve(other.positions_.capacity());
    turns_.reserve_as(other.turns_);
    multiplicity_.reserve_as(other.multiplicity_);
    precision_.reserve(other.precision_.capacity());
    for (std::size_t c = 0; c < columns_.size(); ++c) columns_[c].reserve(other.columns_[c].capacity());
  }
  std::size_t bytes() const {
    std::size_t sum = positions_.bytes() + turns_.bytes() + multiplicity_.bytes() + precision_.capacity();
    for (const auto& column : columns_) sum += column.size();
    return sum;
  }

 private:
  /// Gives a column its first entries. A head that stays about this long never grows it.
  template <class T>
  void fill(std::vector<T>& column, T value) const {
    column.reserve(size() + size() / 16 + 1);
    column.assign(size(), value);
  }
  void resize_columns(std::size_t slots) noexcept {
    multiplicity_.resize(slots);
    if (!precision_.empty()) precision_.resize(slots);
    for (std::size_t c = 0; c < columns_.size(); ++c) columns_[c].resize(slots * defaults_[c].size());
  }

  PositionList positions_;
  TurnList turns_;
  Multiplicity multiplicity_;
  std::vector<std::uint8_t> precision_;
  std::vector<std::vector<std::byte>> defaults_;
  std::vector<Column> columns_;
};

}  // namespace kvc::inline KVC_ABI
