#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory_resource>
#include <span>
#include <string>
#include <vector>

#include "kvc/codec/make.hpp"
#include "kvc/shape.hpp"
#include "kvc/storage/row_store.hpp"
#include "kvc/storage/runs.hpp"

namespace kvc::inline KVC_ABI {

/// Everything one KV head holds: its slots in ascending position, with the rows of their keys and values, how many tokens
/// each stands for, and the columns that policies keep per slot. All of it moves together, so nothing can lose its key.
class HeadStore {
 public:
  /// `slot_defaults`: for every column, the bytes a new slot starts with.
  HeadStore(const CacheShape& shape, const Streams& streams, const Dense& dense,
            std::vector<std::vector<std::byte>> slot_defaults, std::pmr::memory_resource* memory)
      : keys_(make_store(streams.key, Role::key, shape.head_dim, dense, memory)),
        values_(make_store(streams.value, Role::value, shape.values_dim(), dense, memory)),
        defaults_(std::move(slot_defaults)),
        columns_(defaults_.size()) {}

  std::size_t size() const { return positions_.size(); }
  std::size_t seen() const { return seen_; }
  const RowStore& keys() const { return keys_; }
  const RowStore& values() const { return values_; }
  /// Whether every slot has the same row number for its key and its value.
  bool in_step() const { return in_step_; }
  Position position(std::size_t slot) const { return positions_[slot]; }
  const IndexMap& positions() const { return positions_; }
  std::span<const float> multiplicity() const { return multiplicity_; }
  std::byte* column(std::size_t index) { return columns_[index].data(); }
  const std::byte* column(std::size_t index) const { return columns_[index].data(); }

  /// Appends one slot per row at `positions`. A single row may take an evicted one's place unless it must lie `behind`.
  void append(ConstRows keys, ConstRows values, std::span<const Position> positions, bool behind = false) {
    if (keys.count == 1 && !behind) {
      // A store that seals keeps its dense rows in order; one that never does reuses the rows of evicted slots.
      keys_.seals() ? keys_.append(keys) : keys_.append_reusing(keys);
      values_.seals() ? values_.append(values) : values_.append_reusing(values);
    } else {
      // In turns, so that a chunk's values lie behind its keys: attention reads them in this order.
      for (std::size_t row = 0, count = 0; row < keys.count; row += count) {
        count = std::min(RowStore::PromptRows - keys_.rows() % RowStore::PromptRows, keys.count - row);
        keys_.append(keys.subrows(row, count));
        values_.append(values.subrows(row, count));
      }
    }
    for (const Position position : positions) positions_.push_back(position);
    if (!multiplicity_.empty()) multiplicity_.resize(size(), 1.0f);
    for (std::size_t c = 0; c < columns_.size(); ++c)
      for (std::size_t i = 0; i < keys.count; ++i)
        columns_[c].insert(columns_[c].end(), defaults_[c].begin(), defaults_[c].end());
    seen_ += keys.count;
    if (size() != 0) in_step_ = in_step_ && keys_.map()[size() - 1] == values_.map()[size() - 1];
  }

  struct Mark {
    std::size_t slots = 0, seen = 0;
  };
  Mark mark() const noexcept { return {size(), seen_}; }
  void revert(const Mark& mark) noexcept {
    Workspace workspace;
    truncate(mark.slots, seen_ - mark.seen, workspace);
  }
  void reserve_for_keep() {}
  bool keeps_in_place(std::span<const std::uint8_t>) const { return false; }
  void release() noexcept {}
  bool seal_due(bool) const { return keys_.seals() || values_.seals(); }
  float key_limit() const { return std::numeric_limits<float>::max(); }
  float value_limit() const { return std::numeric_limits<float>::max(); }
  std::size_t precision_classes() const { return 0; }
  void set_precision(std::size_t, std::uint8_t) {}
  void set_streams(const Streams&) {}

  /// Drops the slots whose flag is 0; `compact` gathers what stays (see RowStore::keep).
  void keep(std::span<const std::uint8_t> flags, bool compact, Workspace& workspace) {
    const bool alike = in_step_ && keys_.moves_like(values_);
    keys_.keep(flags, compact, workspace);
    values_.keep(flags, compact, workspace);
    positions_.keep(flags);
    const std::size_t kept =
        detail::for_each_moved_run(flags, [&](std::size_t from, std::size_t to, std::size_t count) {
          if (!multiplicity_.empty()) std::memmove(&multiplicity_[to], &multiplicity_[from], count * sizeof(float));
          for (std::size_t c = 0; c < columns_.size(); ++c)
            if (const std::size_t bytes = defaults_[c].size())
              std::memmove(columns_[c].data() + to * bytes, columns_[c].data() + from * bytes, count * bytes);
        });
    resize_columns(kept);
    if (!alike) check_step();
  }

  /// Drops the newest slots, so that `slots` stay, and forgets having seen `tokens` tokens.
  void truncate(std::size_t slots, std::size_t tokens, Workspace& workspace) {
    keys_.truncate(slots, workspace);
    values_.truncate(slots, workspace);
    positions_.truncate(slots);
    resize_columns(slots);
    seen_ -= tokens;
    check_step();
  }

  void rewrite(std::size_t slot, std::span<const float> key, std::span<const float> value, Workspace& workspace) {
    if (!key.empty()) keys_.rewrite(slot, key, workspace);
    if (!value.empty()) values_.rewrite(slot, value, workspace);
    check_step();
  }
  void set_multiplicity(std::size_t slot, float tokens) {
    if (multiplicity_.empty()) {
      multiplicity_.reserve(size() + size() / 16 + 1);  // a head that stays about this long never grows it
      multiplicity_.assign(size(), 1.0f);
    }
    multiplicity_[slot] = tokens;
  }

  void seal(bool prompt_end, Workspace& workspace) {
    if (!keys_.seals() && !values_.seals()) return;
    keys_.seal(prompt_end, workspace);
    values_.seal(prompt_end, workspace);
    check_step();
  }

  /// Gives slots shared directions as their keys, or values (see RowStore::share).
  void share(Role role, std::span<const RowStore::SharedRows> blocks, Workspace& workspace) {
    (role == Role::key ? keys_ : values_).share(blocks, workspace);
    check_step();
  }

  /// What is added to the logit of every key row: log(multiplicity), -inf for dead rows; `size` of them, of which those
  /// behind the last row are -inf too. Empty if it is 0 everywhere.
  std::span<float> key_bias(std::size_t size, Workspace::Frame& frame) const {
    if (multiplicity_.empty() && keys_.dead_rows() == 0) return {};
    const std::span<float> memory = frame.filled(size, -std::numeric_limits<float>::infinity());
    float* bias = memory.data();
    keys_.map().for_each_entry([bias](std::size_t, std::size_t row) { bias[row] = 0; });
    for (std::size_t slot = 0; slot < multiplicity_.size(); ++slot)
      if (multiplicity_[slot] != 1.0f)
        bias[static_cast<std::size_t>(keys_.map()[slot])] = std::log(multiplicity_[slot]);
    return memory;
  }

  /// Room for `slots` slots; `reorders`: evictions will break the slot order.
  void reserve(std::size_t slots, bool reorders) {
    keys_.reserve(slots, reorders);
    values_.reserve(slots, reorders);
    if (reorders) positions_.reserve(slots);
    for (std::size_t c = 0; c < columns_.size(); ++c) columns_[c].reserve(slots * defaults_[c].size());
  }

  Stats stats(const CacheShape& shape) const {
    Stats stats;
    stats.seen = seen_;
    stats.slots = size();
    stats.dense_bytes = seen_ * (shape.head_dim + shape.values_dim()) * 2;
    keys_.add_to(stats);
    values_.add_to(stats);
    stats.metadata += positions_.bytes() + multiplicity_.capacity() * sizeof(float);
    for (const auto& column : columns_) stats.metadata += column.size();
    return stats;
  }

 private:
  static RowStore make_store(const Stream& stream, Role role, std::size_t dim, const Dense& dense,
                             std::pmr::memory_resource* memory) {
    // A Dense stream only chooses the element type; anything else is sealed out of dense rows.
    if (!stream.format) return {make_codec(dense, role, dim), nullptr, stream, memory};
    if (std::holds_alternative<Dense>(*stream.format))
      return {make_codec(*stream.format, role, dim), nullptr, stream, memory};
    auto sealed = make_codec(*stream.format, role, dim);
    const std::string side = role == Role::key ? "key" : "value";
    if (stream.batch == 0 || stream.batch % sealed->granule() != 0)
      fail(ErrorCode::invalid_argument, "Stream (" + side + "): batch (" + std::to_string(stream.batch) +
                                            ") must be a positive multiple of the tokens that share a scale (" +
                                            std::to_string(sealed->granule()) + ")");
    return {make_codec(dense, role, dim), std::move(sealed), stream, memory};
  }

  void resize_columns(std::size_t slots) {
    if (!multiplicity_.empty()) multiplicity_.resize(slots);
    for (std::size_t c = 0; c < columns_.size(); ++c) columns_[c].resize(slots * defaults_[c].size());
  }
  void check_step() {
    const IndexMap &k = keys_.map(), &v = values_.map();
    in_step_ = keys_.rows() == values_.rows();
    if (in_step_) in_step_ = k == v;
  }

  RowStore keys_, values_;
  IndexMap positions_;
  std::vector<float> multiplicity_;
  std::vector<std::vector<std::byte>> defaults_, columns_;
  std::size_t seen_ = 0;
  bool in_step_ = true;
};

}  // namespace kvc
