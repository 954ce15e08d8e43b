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

  /// Whether no segment will be mostly dead once the slots whose flag is 0 are gone.
  static bool has_nothing_to_release(const RowTable& table, std::span<const std::uint8_t> flags, Workspace& workspace) {
    Workspace::Frame frame(workspace);
    return std::ranges::count(mostly_dead(table, flags, frame), std::uint8_t{1}) == 0;
  }

  /// Rows that move behind all others, and the slots that they belong to.
  struct Move {
    std::span<const std::uint32_t> slots;
    Rows<float> rows;
  };
  /// Reads the few rows that will be left in segments that are three quarters dead once the slots whose flag is 0 are gone,
  /// and makes sure that move() cannot fail. Slots are numbered as they will be then. Lives as long as `frame`.
  Move reserve_release(std::span<const std::uint8_t> flags, Workspace::Frame& frame) {
    const auto leaves = mostly_dead(table_, flags, frame);
    if (std::ranges::count(leaves, std::uint8_t{1}) == 0) return {};
    const auto found = frame.take<std::uint32_t>(table_.map.size());
    std::size_t count = 0;
    for (std::size_t i = 0; i < leaves.size(); ++i)
      if (leaves[i] != 0) find_slots(table_.segments[i], found, count);
    count = static_cast<std::size_t>(std::remove_if(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(count),
                                                    [&](std::uint32_t slot) { return flags[slot] == 0; }) -
                                     found.begin());
    const Move move = read(found.first(count), frame);
    std::size_t dropped = detail::first_unset(flags), gone = 0;
    for (std::uint32_t& slot : found.first(count)) {
      for (; dropped < slot; dropped += 1 + detail::first_unset(flags.subspan(dropped + 1))) ++gone;
      slot -= static_cast<std::uint32_t>(gone);
    }
    reserve_move(count);
    return move;
  }
  /// Moves rows behind all others, as dense rows; sealed ones will be sealed again with the oldest.
  void move(const Move& moved) noexcept {
    const std::size_t count = moved.slots.size();
    if (count == 0) return;
    for (const std::uint32_t slot : moved.slots) ++table_.segments[table_.segments.holding(table_.row_of(slot))].dead;
    table_.erase_dead(count);
    const std::size_t first = table_.place(moved.rows);
    for (std::size_t i = 0; i < count; ++i) table_.map.set(moved.slots[i], static_cast<std::int32_t>(first + i));
    table_.trim();
  }

  /// Moves the live rows of the segments that `leaves` says yes to behind all others, in slot order, as dense rows.
  template <class Leaves>
  void move_behind(Leaves leaves) {
    if (std::ranges::none_of(table_.segments.all(), leaves)) return;
    Workspace::Frame frame(workspace_);
    const auto found = frame.take<std::uint32_t>(table_.map.size());
    std::size_t count = 0;
    for (const Segment& segment : table_.segments.all())
      if (leaves(segment)) find_slots(segment, found, count);
    const Move moved = read(found.first(count), frame);
    reserve_move(count);
    move(moved);
    table_.recount_free(workspace_);
  }

  /// The rows of the slots whose flag is not 0 lie together in slot order, in new blocks.
  void compact_to(std::span<const std::uint8_t> flags) {
    RowTable fresh{table_.dense, table_.plain, table_.wide, table_.sealed, table_.stream, table_.memory};
    fresh.transforming = table_.transforming;  // its codecs were noted when they were asked, once
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
  /// 1 for every segment that will be mostly dead, but not wholly, once the slots whose flag is 0 are gone.
  static std::span<const std::uint8_t> mostly_dead(const RowTable& table, std::span<const std::uint8_t> flags,
                                                   Workspace::Frame& frame) {
    const SegmentList& segments = table.segments;
    const auto found = frame.filled<std::uint8_t>(segments.size(), 0);
    const auto dead = frame.take<std::size_t>(segments.size());
    for (std::size_t i = 0; i < segments.size(); ++i) dead[i] = segments[i].dead;
    detail::for_each_unset(flags, [&](std::size_t slot) { ++dead[segments.holding(table.row_of(slot))]; });
    bool is_last = true;
    for (std::size_t i = segments.size(); i-- > 0;) {
      if (dead[i] == segments[i].rows()) continue;  // it is freed as a whole
      found[i] = is_mostly_dead(segments[i], dead[i], is_last);
      is_last = false;
    }
    return found;
  }
  /// Adds the slots that lie in a segment.
  void find_slots(const Segment& segment, std::span<std::uint32_t> found, std::size_t& count) const {
    table_.map.for_each_within(static_cast<std::int32_t>(segment.first),
                               static_cast<std::int32_t>(segment.first + segment.rows()),
                               [&](std::size_t slot) { found[count++] = static_cast<std::uint32_t>(slot); });
  }
  Move read(std::span<std::uint32_t> slots, Workspace::Frame& frame) const {
    std::ranges::sort(slots);
    const Rows<float> rows(frame.take(slots.size() * table_.dim()).data(), slots.size(), table_.dim());
    for (std::size_t i = 0; i < slots.size(); ++i) table_.gather(slots[i], rows.subrows(i, 1));
    return {slots, rows};
  }
  void reserve_move(std::size_t count) {
    table_.map.reserve_more(0, true);
    table_.reserve_rows(count, table_.seals() ? RowTable::TransientRows : RowTable::PromptRows, true);
  }

  static bool is_mostly_dead(const Segment& segment, std::size_t dead, bool is_last) {
    // Against the capacity of a sealed block: one that has just been begun still fills up.
    if (segment.sealed) return dead * 4 >= segment.block->capacity() * 3;
    return !is_last && dead * 4 >= segment.rows() * 3;
  }

  RowTable& table_;
  Workspace& workspace_;
};

}  // namespace kvc
