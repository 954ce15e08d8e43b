#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "kvc/storage/row_table.hpp"
#include "kvc/storage/runs.hpp"

namespace kvc::inline KVC_ABI {

/// Moves the rows that stay together, so that the bytes held stay within a small factor of the slots that live. Where a
/// function throws, part of its work has been done: it is for a table that nobody sees yet.
class Compaction {
 public:
  Compaction(RowTable& table, Workspace& workspace) : table_(table), workspace_(workspace) {}

  /// The few rows left in segments that are three quarters dead move behind all others; sealed ones are dense again, to be
  /// sealed with the oldest.
  void release_mostly_dead() {
    if (table_.segments.empty()) return;
    const Segment* last = &table_.segments.back();
    move_behind([&](const Segment& segment) { return is_mostly_dead(segment, segment.dead, &segment == last); });
  }
  /// Whether release_mostly_dead() will find nothing once the slots whose flag is 0 are gone.
  static bool has_nothing_to_release(const RowTable& table, std::span<const std::uint8_t> flags,
                                     Workspace& workspace) {
    const SegmentList& segments = table.segments;
    Workspace::Frame frame(workspace);
    const auto dead = frame.take<std::size_t>(segments.size());
    for (std::size_t i = 0; i < segments.size(); ++i) dead[i] = segments[i].dead;
    detail::for_each_unset(flags, [&](std::size_t slot) { ++dead[segments.holding(table.row_of(slot))]; });
    bool is_last = true;
    for (std::size_t i = segments.size(); i-- > 0;) {
      if (dead[i] == segments[i].rows()) continue;  // it is freed as a whole
      if (is_mostly_dead(segments[i], dead[i], is_last)) return false;
      is_last = false;
    }
    return true;
  }

  /// Moves the live rows of the segments that `leaves` says yes to behind all others, in slot order, as dense rows.
  template <class Leaves>
  void move_behind(Leaves leaves) {
    if (table_.segments.empty() || std::ranges::none_of(table_.segments.all(), leaves)) return;
    Workspace::Frame frame(workspace_);
    const auto found = frame.take<std::uint32_t>(table_.map.size());
    std::size_t count = 0;
    for (const Segment& segment : table_.segments.all())
      if (leaves(segment))
        table_.map.for_each_within(static_cast<std::int32_t>(segment.first),
                                   static_cast<std::int32_t>(segment.first + segment.rows()),
                                   [&](std::size_t slot) { found[count++] = static_cast<std::uint32_t>(slot); });
    const auto slots = found.first(count);
    std::ranges::sort(slots);
    const auto values = frame.take(count * table_.dim());
    const Rows<float> rows(values.data(), count, table_.dim());
    for (std::size_t i = 0; i < count; ++i) table_.gather(slots[i], rows.subrows(i, 1));
    for (const std::uint32_t slot : slots) ++table_.segments[table_.segments.holding(table_.row_of(slot))].dead;
    table_.erase_dead(count);
    table_.reserve_rows(count, table_.seals() ? RowTable::TransientRows : RowTable::PromptRows);
    const std::size_t first = table_.place(rows);
    for (std::size_t i = 0; i < count; ++i) table_.map.set(slots[i], static_cast<std::int32_t>(first + i));
    table_.recount_free(workspace_);
  }

  /// The rows of the slots whose flag is not 0 lie together in slot order, in new blocks.
  void compact_to(std::span<const std::uint8_t> flags) {
    RowTable fresh{table_.dense, table_.sealed, table_.stream, table_.memory};
    fresh.reserve_as(table_);
    constexpr std::size_t AtOnce = RowTable::PromptRows;
    Workspace::Frame frame(workspace_);
    const auto values = frame.take(AtOnce * table_.dim());
    const Rows<float> rows(values.data(), AtOnce, table_.dim());
    std::size_t filled = 0, kept = 0;
    const auto flush = [&] {
      fresh.reserve_rows(filled);
      fresh.place(rows.subrows(0, filled));
      kept += std::exchange(filled, 0);
    };
    for (std::size_t slot = 0; slot < flags.size();) {
      std::size_t count = 0;  // neighbours are decoded together: a row of keys lies scattered among its tile's
      while (slot + count < flags.size() && flags[slot + count] && filled + count < AtOnce) ++count;
      table_.gather(slot, rows.subrows(filled, count));
      filled += count;
      slot += std::max<std::size_t>(count, 1);
      if (filled == AtOnce) flush();
    }
    flush();
    fresh.map.reset(kept);
    table_ = std::move(fresh);
  }

 private:
  static bool is_mostly_dead(const Segment& segment, std::size_t dead, bool is_last) {
    // Against the capacity of a sealed block: one that has just been begun still fills up.
    if (segment.sealed) return dead * 4 >= segment.block->capacity() * 3;
    return !is_last && dead * 4 >= segment.rows() * 3;
  }

  RowTable& table_;
  Workspace& workspace_;
};

}  // namespace kvc
