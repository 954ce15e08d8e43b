#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/shape.hpp"
#include "kvc/storage/compaction.hpp"
#include "kvc/storage/make_store.hpp"
#include "kvc/storage/placement.hpp"
#include "kvc/storage/row_store.hpp"
#include "kvc/storage/runs.hpp"
#include "kvc/storage/sealing.hpp"
#include "kvc/storage/sharing.hpp"
#include "kvc/storage/slot_table.hpp"

namespace kvc::inline KVC_ABI {

/// Everything one KV head holds: its slots in ascending position, with the rows of their keys and values, how many tokens
/// each stands for, its class of precision, and the columns that policies keep per slot. All of it moves together, so
/// nothing can lose its key.
///
/// Every change either does all it says or throws and leaves the head bitwise as it was. A copy shares the blocks of rows
/// and costs little; assigning it back cannot fail, so a caller can undo what it did to several heads. Such a caller tells
/// keep(), seal() and share() that the head is `saved`, and spares them a copy of their own.
class HeadStore {
 public:
  /// `slot_defaults`: for every column, the bytes a new slot starts with.
  HeadStore(const CacheShape& shape, const Streams& streams, const Dense& dense,
            std::vector<std::vector<std::byte>> slot_defaults, std::pmr::memory_resource* memory)
      : keys_(make_store(streams.key, Role::key, shape.head_dim, dense, memory)),
        values_(make_store(streams.value, Role::value, shape.values_dim(), dense, memory)),
        slots_(std::move(slot_defaults)) {}

  std::size_t size() const { return slots_.size(); }
  std::size_t seen() const { return seen_; }
  const RowStore& keys() const { return keys_; }
  const RowStore& values() const { return values_; }
  /// Whether every slot has the same row number for its key and its value.
  bool in_step() const { return in_step_; }
  const SlotTable& slots() const { return slots_; }
  /// The column of a policy, to be written.
  std::byte* column(std::size_t index) { return slots_.column(index); }
  /// Classes of precision besides class 0 that set_precision() takes.
  std::size_t precision_classes() const {
    return std::max(keys_.table().stream.classes.size(), values_.table().stream.classes.size());
  }
  /// The largest magnitude of an element of a key, or a value, that is read back finite.
  float key_limit() const { return keys_.limit(); }
  float value_limit() const { return values_.limit(); }

  /// Appends one slot per row at `positions`. A single row may take an evicted one's place unless it must lie `behind`.
  void append(ConstRows keys, ConstRows values, std::span<const Position> positions, bool behind = false) {
    Placement key_rows(keys_.table()), value_rows(values_.table());
    if (keys.count != 0) {
      keys_.table().settle(keys);
      values_.table().settle(values);
    }
    // A store that seals keeps its dense rows in order; one that never does reuses the rows of evicted slots.
    const bool one = keys.count == 1 && !behind, reuses_keys = one && !keys_.seals(),
               reuses_values = one && !values_.seals();
    {
      Reserved reserved{key_rows, value_rows};
      // In turns, so that a chunk's values lie behind its keys: attention reads them in this order.
      for (std::size_t end = 0; end < keys.count;) {
        end += std::min(RowStore::PromptRows - (keys_.rows() + end) % RowStore::PromptRows, keys.count - end);
        key_rows.reserve_append(end, reuses_keys);
        value_rows.reserve_append(end, reuses_values);
      }
      slots_.reserve_append(positions);
      reserved.used = true;
    }
    key_rows.append(keys, reuses_keys);
    value_rows.append(values, reuses_values);
    slots_.append(positions);
    seen_ += keys.count;
    if (size() != 0) in_step_ = in_step_ && keys_.map()[size() - 1] == values_.map()[size() - 1];
  }

  /// A moment before rows are appended.
  struct Mark {
    Placement::Mark keys, values;
    std::size_t slots = 0, seen = 0;
    bool identity = true, in_step = true;
  };
  Mark mark() const noexcept {
    return {Placement::mark(keys_.table()),
            Placement::mark(values_.table()),
            size(),
            seen_,
            slots_.positions().identity(),
            in_step_};
  }
  /// Takes back all that was appended since the mark. Nothing but append() may have happened.
  void revert(const Mark& mark) noexcept {
    Placement(keys_.table()).revert(mark.keys);
    Placement(values_.table()).revert(mark.values);
    slots_.revert(mark.slots, mark.identity);
    seen_ = mark.seen;
    in_step_ = mark.in_step;
  }

  /// Becomes a copy of `other` with as much room, so that taking its place costs no allocation later. Throws what allocation
  /// throws; a copy that was one before asks for little.
  void copy_with_room(const HeadStore& other) {
    *this = other;
    keys_.table().reserve_as(other.keys_.table());
    values_.table().reserve_as(other.values_.table());
    slots_.reserve_as(other.slots_);
  }

  /// Lets go of all rows, so that the blocks that this copy shares belong to others alone again.
  void release() noexcept {
    keys_.table().segments.clear();
    values_.table().segments.clear();
  }

  /// Whether dropping the slots whose flag is 0 moves no row: then keep_in_place() does it.
  bool keeps_in_place(std::span<const std::uint8_t> flags, Workspace& workspace) const {
    const auto stays = [&](const RowStore& store) {
      return !store.seals() || Compaction::has_nothing_to_release(store.table(), flags, workspace);
    };
    return stays(keys_) && stays(values_);
  }
  /// Obtains what keep_in_place() needs.
  void reserve_for_keep(std::span<const std::uint8_t> flags) {
    Placement(keys_.table()).reserve_keep(flags);
    Placement(values_.table()).reserve_keep(flags);
    slots_.reserve_keep(flags);
  }
  /// Drops the slots whose flag is 0. Needs keeps_in_place() to be true and reserve_for_keep().
  void keep_in_place(std::span<const std::uint8_t> flags) noexcept {
    const bool alike = in_step_ && keys_.moves_like(values_);
    Placement(keys_.table()).keep(flags);
    Placement(values_.table()).keep(flags);
    slots_.keep(flags);
    if (!alike) check_step();
  }
  /// Drops the slots whose flag is 0. With `compact`, rows that stay move together, in slot order, on each side of which
  /// nothing is sealed.
  void keep(std::span<const std::uint8_t> flags, bool compact, Workspace& workspace, bool saved = false) {
    const bool alike = in_step_ && keys_.moves_like(values_);
    if (compact && (keys_.sealed_rows() == 0 || values_.sealed_rows() == 0))
      keep_compact(flags, workspace, saved);
    else
      keep_both(flags, workspace);
    slots_.keep(flags);
    if (!alike) check_step();
  }

  /// When slots leave a window of the layer.
  enum class Slide : std::uint8_t {
    open_prompt,  ///< rows keep their places in the chunks of attention, so that it does not matter how a prompt is cut
    prompt_end,   ///< rows move together in slot order, on each side of which nothing is sealed
    between,      ///< no row moves
  };
  /// Whether rows are dead that a slide at the end of a prompt would free.
  bool slid() const {
    const auto has_holes = [](const RowStore& store) { return store.dead_rows() != 0 && store.sealed_rows() == 0; };
    return has_holes(keys_) || has_holes(values_);
  }
  /// Drops the oldest slots, whose flag is 0. Unlike keep() it moves no row of a block that is mostly dead: the whole of it will
  /// be soon. Where it throws, part has been done: for a caller who holds a copy.
  void slide(std::span<const std::uint8_t> flags, Slide when, Workspace& workspace) {
    slots_.reserve_keep(flags);
    for (RowStore* store : {&keys_, &values_}) {
      if (when == Slide::prompt_end && store->sealed_rows() == 0) {
        Compaction(store->table(), workspace).compact_to(flags);
        continue;
      }
      Placement placement(store->table());
      placement.reserve_keep(flags);
      placement.keep(flags, when == Slide::open_prompt);
    }
    slots_.keep(flags);
    check_step();
  }

  /// Drops the newest slots, so that `slots` stay, and forgets having seen `tokens` tokens.
  void truncate(std::size_t slots, std::size_t tokens) {
    Placement key_rows(keys_.table()), value_rows(values_.table());
    key_rows.reserve_truncate(slots);
    value_rows.reserve_truncate(slots);
    key_rows.truncate(slots);
    value_rows.truncate(slots);
    slots_.truncate(slots);
    seen_ -= tokens;
    check_step();
  }

  /// Forgets having seen `tokens` tokens, whose slots are gone.
  void forget(std::size_t tokens) noexcept { seen_ -= std::min(tokens, seen_ - size()); }

  /// The positions of slots [first, last) become `change` more. No row moves: what reads keys turns them (SlotTable::turns).
  void shift(std::size_t first, std::size_t last, std::int32_t change) { slots_.shift(first, last, change); }

  /// Gives a slot another key and another value; an empty span leaves that side as it is.
  void rewrite(std::size_t slot, std::span<const float> key, std::span<const float> value) {
    Placement key_rows(keys_.table()), value_rows(values_.table());
    {
      Reserved reserved{key_rows, value_rows};
      if (!key.empty()) key_rows.reserve_rewrite(slot);
      if (!value.empty()) value_rows.reserve_rewrite(slot);
      reserved.used = true;
    }
    if (!key.empty()) key_rows.rewrite(slot, {key.data(), 1, key.size()});
    if (!value.empty()) value_rows.rewrite(slot, {value.data(), 1, value.size()});
    check_step();
  }
  /// The positions take few bytes from now on; dropping slots costs more then. Throws what allocation throws.
  void pack_positions() { slots_.pack(); }
  /// The slot stands for so many tokens.
  void set_multiplicity(std::size_t slot, float tokens) { slots_.set_multiplicity(slot, tokens); }
  /// What the slot is sealed with, once it is: 0 is Stream::format, c > 0 is Stream::classes[c - 1]. A slot that is sealed
  /// already keeps its codes.
  void set_precision(std::size_t slot, std::uint8_t number) {
    for (const RowStore* store : {&keys_, &values_})
      require_class("set_precision", number, store->table().stream.classes.size());
    slots_.set_precision(slot, number);
  }

  /// Whether seal() would do anything.
  bool seal_due(bool prompt_end) const {
    return Sealing::is_due(keys_.table(), slots_.precision(), prompt_end) ||
           Sealing::is_due(values_.table(), slots_.precision(), prompt_end);
  }
  /// Returns the first slot whose key may read otherwise now, or size().
  std::size_t seal(bool prompt_end, Workspace& workspace, bool saved = false) {
    SealStep step(*this, prompt_end, workspace);
    const std::size_t first = step.first_key();
    if (step.done()) return first;
    if (step.is_one_piece()) {
      step.prepare();
      step.commit();
      return first;
    }
    change_both(
        saved, [&](RowStore& store) { Sealing(store.table(), step.columns_, prompt_end, step.frame_).run(); }, [] {});
    check_step();
    return first;
  }
  /// A seal in two halves: what may throw, and what cannot. Nothing else may happen to the head between the two.
  class SealStep {
   public:
    SealStep(HeadStore& store, bool prompt_end, Workspace& workspace)
        : store_(store),
          frame_(workspace),
          columns_{store.slots_.positions(), store.slots_.turns(), store.slots_.precision()},
          keys_(store.keys_.table(), columns_, prompt_end, frame_),
          values_(store.values_.table(), columns_, prompt_end, frame_) {}

    bool done() const { return keys_.done() && values_.done(); }
    /// The first slot whose key may read otherwise after commit(); size() if there is none.
    std::size_t first_key() const { return keys_.done() ? store_.size() : keys_.first_slot(); }
    /// Whether the two halves do it all, as while tokens are decoded.
    bool is_one_piece() const { return keys_.is_one_piece() && values_.is_one_piece(); }
    void prepare() {
      keys_.prepare();
      values_.prepare();
    }
    void commit() noexcept {
      keys_.commit();
      values_.commit();
      store_.check_step();
    }

   private:
    friend class HeadStore;
    HeadStore& store_;
    Workspace::Frame frame_;
    SlotColumns columns_;
    Sealing keys_, values_;
  };

  /// Gives slots shared directions as their keys, or values.
  void share(Role role, std::span<const SharedRows> blocks, Workspace& workspace, bool saved = false) {
    RowStore& store = role == Role::key ? keys_ : values_;
    if (saved) {
      share_rows(store.table(), blocks, workspace);
    } else {
      RowStore changed = copy_of(store);
      share_rows(changed.table(), blocks, workspace);
      store = std::move(changed);
    }
    check_step();
  }

  /// Seals with other formats from now on. Nothing may be sealed yet, the type of dense rows stays as it is, and the formats must
  /// hold the rows and have the classes of precision that there are. Throws Error otherwise.
  void set_streams(const Streams& streams) {
    for (const std::uint8_t number : slots_.precision()) {
      require_class("set_streams", number, streams.key.classes.size());
      require_class("set_streams", number, streams.value.classes.size());
    }
    RowStore keys = copy_of(keys_), values = copy_of(values_);
    set_stream(keys, streams.key, Role::key);
    set_stream(values, streams.value, Role::value);
    keys_ = std::move(keys);
    values_ = std::move(values);
  }

  /// The parts of an empty head, for whoever fills it with what a session has; restored() then ends that.
  struct Parts {
    RowTable &keys, &values;
    SlotTable& slots;
  };
  Parts parts() { return {keys_.table(), values_.table(), slots_}; }
  void restored(std::size_t seen, bool in_step) noexcept {
    seen_ = seen;
    check_step();
    in_step_ = in_step_ && in_step;
  }

  /// What is added to the logit of every key row: log(multiplicity), -inf for dead rows; `size` of them, of which those
  /// behind the last row are -inf too. Empty if it is 0 everywhere.
  std::span<float> key_bias(std::size_t size, Workspace::Frame& frame) const {
    if (slots_.multiplicity().empty() && keys_.dead_rows() == 0) return {};
    const std::span<float> memory = frame.filled(size, -std::numeric_limits<float>::infinity());
    float* bias = memory.data();
    keys_.map().for_each_entry([bias](std::size_t, std::size_t row) { bias[row] = 0; });
    if (const Multiplicity& multiplicity = slots_.multiplicity(); !multiplicity.empty())
      for (std::size_t slot = 0; slot < slots_.size(); ++slot)
        bias[static_cast<std::size_t>(keys_.map()[slot])] = multiplicity.logarithm(slot);
    return memory;
  }

  /// Room for `slots` slots; `reorders`: evictions will break the slot order.
  void reserve(std::size_t slots, bool reorders) {
    keys_.reserve(slots, reorders);
    values_.reserve(slots, reorders);
    slots_.reserve(slots, reorders);
  }

  Stats stats(const CacheShape& shape) const {
    Stats stats;
    stats.seen = seen_;
    stats.slots = size();
    stats.dense_bytes = seen_ * (shape.head_dim + shape.values_dim()) * 2;
    keys_.add_to(stats);
    values_.add_to(stats);
    stats.metadata += slots_.bytes();
    return stats;
  }

 private:
  /// Takes back what was reserved for both sides unless all of it was `used`.
  struct Reserved {
    Placement &keys, &values;
    bool used = false;
    ~Reserved() {
      if (used) return;
      keys.undo_reserve();
      values.undo_reserve();
    }
  };

  static void require_class(const char* call, std::uint8_t number, std::size_t classes) {
    if (classes != 0 && number > classes)
      fail(ErrorCode::invalid_argument,
           {call, ": class ", number, ", but a stream has ", classes, " classes besides class 0"});
  }

  /// A copy that can take the original's place and then has as much room as it.
  static RowStore copy_of(const RowStore& store) {
    RowStore copy = store;
    copy.table().reserve_as(store.table());
    return copy;
  }
  /// Obtains what `reserve` asks for and changes both sides: copies of them, which then take the originals' places, unless the
  /// caller holds a copy.
  template <class Change, class Reserve>
  void change_both(bool saved, Change change, Reserve reserve) {
    if (saved) {
      reserve();
      change(keys_);
      return change(values_);
    }
    RowStore keys = copy_of(keys_), values = copy_of(values_);
    change(keys);
    change(values);
    reserve();
    keys_ = std::move(keys);
    values_ = std::move(values);
  }

  /// The rows of keep(), on each side without the segments that are mostly dead then.
  void keep_both(std::span<const std::uint8_t> flags, Workspace& workspace) {
    Placement key_rows(keys_.table()), value_rows(values_.table());
    Compaction key_moves(keys_.table(), workspace), value_moves(values_.table(), workspace);
    Workspace::Frame frame(workspace);
    Compaction::Move keys, values;
    {
      Reserved reserved{key_rows, value_rows};
      if (keys_.seals()) keys = key_moves.reserve_release(flags, frame);
      if (values_.seals()) values = value_moves.reserve_release(flags, frame);
      reserve_for_keep(flags);
      reserved.used = true;
    }
    key_rows.keep(flags);
    value_rows.keep(flags);
    key_moves.move(keys);
    value_moves.move(values);
  }
  /// The rows of keep(): together in slot order where nothing is sealed.
  void keep_compact(std::span<const std::uint8_t> flags, Workspace& workspace, bool saved) {
    const auto change = [&](RowStore& store) {
      Compaction compaction(store.table(), workspace);
      if (store.sealed_rows() == 0) return compaction.compact_to(flags);
      Workspace::Frame frame(workspace);
      const Compaction::Move moved = store.seals() ? compaction.reserve_release(flags, frame) : Compaction::Move();
      Placement placement(store.table());
      placement.reserve_keep(flags);
      placement.keep(flags);
      compaction.move(moved);
    };
    change_both(saved, change, [&] { slots_.reserve_keep(flags); });
  }

  void check_step() noexcept {
    const IndexMap &k = keys_.map(), &v = values_.map();
    in_step_ = keys_.rows() == values_.rows();
    if (in_step_) in_step_ = k == v;
  }

  RowStore keys_, values_;
  SlotTable slots_;
  std::size_t seen_ = 0;
  bool in_step_ = true;
};

static_assert(std::is_nothrow_move_assignable_v<HeadStore>);

}  // namespace kvc::inline KVC_ABI
