#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvc/storage/row_table.hpp"
#include "kvc/storage/runs.hpp"

namespace kvc::inline KVC_ABI {

/// Gives new slots their rows and takes the rows of others away, without moving any. Each change has two halves: the one
/// whose name begins with `reserve` may throw and changes nothing that can be seen; the other cannot fail after it.
class Placement {
 public:
  explicit Placement(RowTable& table) : table_(table) {}

  /// For append() of `count` rows in all. `reuses`: one row, which may take an evicted one's place.
  void reserve_append(std::size_t count, bool reuses) {
    const bool reused = reuses && !table_.free.empty();
    table_.map.reserve_more(count, reused || table_.dead_rows() != 0);
    if (reused)
      RowTable::own(table_.segments[table_.segments.holding(table_.free.back())]);
    else
      table_.reserve_rows(count);
  }
  /// Gives back what a reserve function obtained, where the change is not made.
  void undo_reserve() noexcept { table_.trim(); }
  void append(ConstRows rows, bool reuses) noexcept {
    if (!reuses || table_.free.empty()) {
      const std::size_t first = table_.place(rows);
      for (std::size_t i = 0; i < rows.count; ++i) table_.map.push_back(static_cast<std::int32_t>(first + i));
      return;
    }
    const std::size_t row = table_.free.back();
    table_.free.pop_back();
    --table_.segments[table_.segments.holding(row)].dead;
    table_.write(row, rows);
    table_.map.push_back(static_cast<std::int32_t>(row));
  }

  /// What revert() needs to know of a table to which rows are appended.
  struct Mark {
    std::size_t slots = 0, rows = 0;
    bool identity = true;
  };
  static Mark mark(const RowTable& table) noexcept { return {table.map.size(), table.rows(), table.map.identity()}; }
  /// Takes back all that was appended since the mark. Nothing else may have happened.
  void revert(const Mark& mark) noexcept {
    for (std::size_t slot = table_.map.size(); slot-- > mark.slots;)
      if (table_.row_of(slot) < mark.rows) table_.kill(table_.row_of(slot));  // it had taken an evicted row's place
    SegmentList& segments = table_.segments;
    while (!segments.empty() && segments.back().first >= mark.rows) segments.pop_back();
    if (!segments.empty()) segments.back().end -= table_.rows() - mark.rows;
    table_.map.revert(mark.slots, mark.identity);
  }

  void reserve_keep(std::span<const std::uint8_t> flags) {
    table_.map.reserve_keep(flags);
    if (table_.seals()) return;
    std::size_t count = 0;
    detail::for_each_unset(flags, [&](std::size_t) { ++count; });
    reserve_free(count);
  }
  /// Drops the slots whose flag is 0. `in_chunks`: rows that stay keep their places in the chunks of attention.
  void keep(std::span<const std::uint8_t> flags, bool in_chunks = false) noexcept {
    detail::for_each_unset(flags, [&](std::size_t slot) { table_.kill(table_.row_of(slot)); });
    table_.map.keep(flags);
    in_chunks ? table_.erase_dead_chunks() : table_.erase_dead();
  }

  void reserve_truncate(std::size_t slots) {
    if (table_.seals() || (table_.map.identity() && table_.dead_rows() == 0)) return;
    std::size_t last = table_.rows(), dead = 0;
    for (std::size_t slot = table_.map.size(); slot-- > slots;) {
      const std::size_t row = table_.row_of(slot);
      if (row + 1 == last && can_shorten(table_.segments[table_.segments.holding(row)]))
        --last;
      else
        ++dead;
    }
    reserve_free(dead);
  }
  /// Drops the newest slots, so that `slots` stay.
  void truncate(std::size_t slots) noexcept {
    if (table_.map.identity() && table_.dead_rows() == 0) return cut(slots);
    // Rows at the very end go, so that the newest slots left lie last, as after an append; others stay behind dead.
    for (std::size_t slot = table_.map.size(); slot-- > slots;)
      if (!drop_last_row(table_.row_of(slot))) table_.kill(table_.row_of(slot));
    table_.map.truncate(slots);
    table_.segments.number();
    table_.erase_dead();
  }

  void reserve_rewrite(std::size_t slot) {
    const std::size_t row = table_.row_of(slot);
    if (!table_.segments.in_sealed(row)) {
      RowTable::own(table_.segments[table_.segments.holding(row)]);
    } else {
      table_.reserve_rows(1);
      table_.map.reserve_more(0, true);
    }
  }
  /// Gives a slot another row; a sealed slot goes back to a dense row.
  void rewrite(std::size_t slot, ConstRows values) noexcept {
    const std::size_t row = table_.row_of(slot);
    if (!table_.segments.in_sealed(row)) return table_.write(row, values);
    table_.map.set(slot, static_cast<std::int32_t>(table_.place(values)));
    table_.kill(row);
    table_.erase_dead();
  }

 private:
  void reserve_free(std::size_t count) {
    const std::size_t needed = table_.free.size() + count;
    if (table_.free.capacity() < needed) table_.free.reserve(std::max(needed, 2 * table_.free.size()));
  }
  /// Drops the last rows of a table in which row i is slot i.
  void cut(std::size_t slots) noexcept {
    SegmentList& segments = table_.segments;
    table_.map.truncate(slots);
    while (!segments.empty() && segments.back().first >= slots) segments.pop_back();
    if (!segments.empty()) {
      Segment& last = segments.back();
      const std::size_t surplus = last.first + last.rows() - slots;
      // Half a group that shares scales cannot be cut off; its rows stay behind dead.
      if (can_shorten(last))
        last.end -= surplus;
      else
        last.dead += surplus;
    }
    segments.number();
  }
  static bool can_shorten(const Segment& segment) {
    return !segment.sealed || (!segment.norms && segment.block->codec().granule() == 1);
  }
  /// Takes `row` off the end; false if it does not lie there or shares scales with others.
  bool drop_last_row(std::size_t row) {
    Segment& last = table_.segments.back();
    if (row + 1 != table_.rows() || !can_shorten(last)) return false;
    --last.end;
    if (last.rows() == 0) table_.segments.pop_back();
    return true;
  }

  RowTable& table_;
};

}  // namespace kvc::inline KVC_ABI
