#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "kvc/storage/index_map.hpp"
#include "kvc/storage/segment_list.hpp"
#include "kvc/stream.hpp"
#include "kvc/workspace.hpp"

namespace kvc::inline KVC_ABI {

/// Which row of which block each slot of one head's keys, or values, lies in: slot i lies in row map[i]. What happens to
/// rows is written elsewhere: RowStore appends and drops them, Sealing makes codes of them, Compaction moves them together.
///
/// Functions whose names begin with `reserve` may throw and change nothing that can be seen; after them, the change itself
/// asks for no memory.
struct RowTable {
  /// Rows per block: of a prompt, of tokens appended one by one, of tokens that will be sealed soon, and of codes sealed
  /// one by one. Large blocks feed the kernels, small ones waste less.
  static constexpr std::size_t PromptRows = 256, OpenRows = 64, TransientRows = 16, SealedRows = 64;

  /// What slots of one class of precision are sealed with.
  struct SealedCodec {
    std::shared_ptr<const Codec> codec;  ///< null: slots of this class stay dense
    bool asked = false;                  ///< whether Codec::fit was asked for this head
    bool fitted = false;                 ///< whether that answered with the codec that there is now
  };

  /// Magnitude of an element of the first row from which on rows are kept wide: see Dense::widens.
  static constexpr float WideFrom = 128;

  std::shared_ptr<const Codec> dense;  ///< of the dense rows: one of the next two
  std::shared_ptr<const Codec> plain,
      wide;                         ///< wide: what rows take if plain has too few digits for them; null: nothing
  std::vector<SealedCodec> sealed;  ///< by class of precision; empty: rows are never sealed
  Stream stream;
  std::pmr::memory_resource* memory;
  SegmentList segments = {};
  IndexMap map = {};
  /// Rows of evicted slots that new slots may take; only a table that never seals reuses rows.
  std::vector<std::uint32_t> free = {};
  /// Codecs of this head's blocks that transform queries or sums (see Codec::prepare).
  std::vector<std::shared_ptr<const Codec>> transforming = {};

  std::size_t dim() const { return dense->dim(); }
  std::size_t rows() const { return segments.rows(); }
  std::size_t dead_rows() const { return rows() - map.size(); }
  bool seals() const { return !sealed.empty(); }
  std::size_t row_of(std::size_t slot) const { return static_cast<std::size_t>(map[slot]); }

  /// Rows of a new block for tokens appended one by one to so many rows: a sixteenth of what is there. Growth stays cheap
  /// and the open block's unused rows stay a small share.
  std::size_t open_capacity(std::size_t rows_before) const {
    if (seals() && !stream.prompt_only) return TransientRows;
    return std::clamp(rows_before / 256 * TileLanes, TileLanes, OpenRows);
  }
  /// Rows of a new block for `count` slots that are sealed behind `before` sealed rows. What is sealed a batch at a time
  /// gets blocks that grow to a sixteenth of what is there, by doubling: headers and unused rows stay a small share, there
  /// are few sizes, and blocks end where attention's chunks do.
  std::size_t sealed_capacity(const Codec& codec, std::size_t count, std::size_t before) const {
    const auto least = [&](std::size_t rows) {
      return codec.granule() > 1 || rows >= SealedRows ? round_up(rows, codec.granule()) : SealedRows;
    };
    std::size_t capacity = least(count);
    if (capacity != least(stream.batch)) return capacity;
    while (2 * capacity <= std::min(PromptRows, before / 16) && before % (2 * capacity) == 0) capacity *= 2;
    return capacity;
  }

  /// Makes sure that place() finds room for `count` dense rows behind all others, in new blocks of at most `most` rows: it
  /// adds segments that hold no row yet, which trim() drops. With `new_ones` there is room even if the open segment goes.
  void reserve_rows(std::size_t count, std::size_t most = PromptRows, bool new_ones = false) {
    if (count == 0) return;
    const std::size_t open = first_open();
    std::size_t room = 0;
    if (new_ones && open < segments.size()) count += segments[open].block->capacity() - segments[open].end;
    if (open < segments.size()) own(segments[open]);
    for (std::size_t i = open; i < segments.size(); ++i) room += segments[i].block->capacity() - segments[i].end;
    while (room < count) {
      const std::size_t wanted = count - room, one_by_one = open_capacity(rows() + room);
      const std::size_t capacity = wanted > one_by_one ? std::min(most, round_up(wanted, TileLanes)) : one_by_one;
      segments.reserve(1);
      segments.push_back({.block = Block::make(dense, capacity, memory)});
      room += capacity;
    }
  }
  /// Drops the segments without a row at the end.
  void trim() {
    while (!segments.empty() && segments.back().rows() == 0) segments.pop_back();
  }
  /// Writes rows into the room that reserve_rows() made; returns the number of the first. No slot has them yet.
  std::size_t place(ConstRows rows) {
    std::size_t at = first_open();
    const std::size_t first = this->rows();
    for (std::size_t done = 0; done < rows.count; ++at) {
      Segment& open = segments[at];
      if (open.rows() == 0) open.first = first + done;
      const std::size_t count = std::min(rows.count - done, open.block->capacity() - open.end);
      open.block->codec().encode(rows.subrows(done, count), open.block->data(), open.block->capacity(), open.end);
      open.end += count;
      done += count;
    }
    return first;
  }

  /// The segment's block, copied first if a fork shares it.
  static Block& own(Segment& segment) {
    if (segment.block.use_count() > 1 || segment.block->lent()) segment.block = segment.block->clone();
#if !defined(__SANITIZE_THREAD__)
    // A fork that let go of the block on another thread has done reading it. (g++'s thread sanitizer knows no fences.)
    std::atomic_thread_fence(std::memory_order_acquire);
#endif
    return *segment.block;
  }
  /// Writes a dense row of a block that nobody shares.
  void write(std::size_t row, ConstRows values) {
    const Segment& segment = segments[segments.holding(row)];
    segment.block->codec().encode(values, segment.block->data(), segment.block->capacity(),
                                  segment.begin + (row - segment.first));
  }

  /// The first rows of a table choose its dense codec: the first row alone, so that it does not matter how a prompt is cut.
  void settle(ConstRows rows) noexcept {
    if (!wide || !segments.empty()) return;
    const auto is_large = [](float x) { return std::abs(x) >= WideFrom; };
    dense = std::ranges::any_of(rows[0], is_large) ? wide : plain;
  }

  /// The row's slot is gone.
  void kill(std::size_t row) {
    ++segments[segments.holding(row)].dead;
    if (!seals() && !segments.in_sealed(row)) free.push_back(static_cast<std::uint32_t>(row));
  }
  /// Frees the segments without a live row and renumbers the rows behind them. `moving`: slots whose rows count as dead
  /// although the map still has them.
  void erase_dead(std::size_t moving = 0) {
    bool any = false;
    // From the last dead segments to the first, so that those before them keep their numbers.
    for (std::size_t end = segments.size(), begin = 0; end > 0; end = begin) {
      begin = end - 1;
      if (!all_dead(segments[begin])) continue;
      while (begin > 0 && all_dead(segments[begin - 1])) --begin;
      any = true;
      const std::size_t live = segments.live_from(end);
      forget_rows(segments[begin].first, segments[end - 1].first + segments[end - 1].rows(),
                  live == 0 ? 0 : live + moving);
    }
    if (!any) return;
    segments.erase_if(all_dead);
    segments.number();
    std::ranges::sort(free, std::greater<>());  // the first rows are reused first
  }
  /// Of the dead rows in front frees whole chunks of PromptRows: segments without a live row, and the beginning of such a one if
  /// it is dense.
  void erase_dead_chunks() {
    std::size_t gone = 0, end = 0, cut = 0;  // rows, segments, and rows of the next segment
    for (std::size_t i = 0; i < segments.size() && all_dead(segments[i]); ++i) {
      const Segment& segment = segments[i];
      const std::size_t behind = segment.first + segment.rows(), chunks = behind / PromptRows * PromptRows;
      if (chunks <= segment.first || (chunks != behind && segment.sealed)) continue;
      gone = chunks;
      end = chunks == behind ? i + 1 : i;
      cut = chunks == behind ? 0 : chunks - segment.first;
    }
    if (gone == 0) return;
    forget_rows(0, gone, segments.live_from(end));
    segments.erase(0, end);
    if (cut != 0) {
      segments[0].begin += cut;
      segments[0].dead -= cut;
    }
    segments.number();
    std::ranges::sort(free, std::greater<>());
  }
  /// Finds the free rows by looking which rows no slot has.
  void recount_free(Workspace& workspace) {
    free.clear();
    if (seals() || dead_rows() == 0) return;
    Workspace::Frame frame(workspace);
    const auto used = frame.filled<std::uint8_t>(rows(), 0);
    for (std::size_t slot = 0; slot < map.size(); ++slot) used[row_of(slot)] = 1;
    for (std::size_t row = rows(); row-- > 0;)
      if (!used[row] && !segments.in_sealed(row)) free.push_back(static_cast<std::uint32_t>(row));
  }

  /// Slots got the last rows of a sealed segment, and their old rows are dead already: the rows behind the segment move up.
  /// The map needs room to be explicit.
  void move_slots_to(std::size_t index, std::span<const std::uint32_t> slots) {
    segments.number_from(index);
    const auto behind = static_cast<std::int32_t>(segments[index].first + segments[index].rows());
    const auto inserted = static_cast<std::int32_t>(slots.size());
    const auto unmoved = static_cast<std::size_t>(
        std::ranges::count_if(slots, [&](std::uint32_t slot) { return map[slot] >= behind - inserted; }));
    map.shift(behind - inserted, inserted, segments.live_from(index + 1) + unmoved);
    for (std::uint32_t& row : free)
      if (static_cast<std::int32_t>(row) >= behind - inserted) row += static_cast<std::uint32_t>(inserted);
    for (std::size_t i = 0; i < slots.size(); ++i) map.set(slots[i], behind - inserted + static_cast<std::int32_t>(i));
    erase_dead();
  }

  /// Rows of slots [first, first + rows.count), decoded.
  void gather(std::size_t first, Rows<float> rows) const {
    for (std::size_t i = 0; i < rows.count;) {
      const std::size_t row = row_of(first + i);
      const Segment& segment = segments[segments.holding(row)];
      std::size_t count = 1;
      while (i + count < rows.count && row + count < segment.first + segment.rows() &&
             row_of(first + i + count) == row + count)
        ++count;
      segment.decode(row, rows.subrows(i, count));
      i += count;
    }
  }
  /// As much room as another table has, so that taking its place costs no allocation later.
  void reserve_as(const RowTable& other) {
    segments.reserve(other.segments.capacity() - segments.size());
    map.reserve(other.map.capacity());
    free.reserve(other.free.capacity());
  }
  /// Remembers a codec that blocks of this head have from now on.
  void note(const std::shared_ptr<const Codec>& codec) {
    if (codec->prepared_dim() == 0 && codec->sum_dim() == 0) return;
    if (std::ranges::find(transforming, codec) == transforming.end()) transforming.push_back(codec);
  }

 private:
  static bool all_dead(const Segment& segment) {
    return segment.rows() != 0 && segment.dead == segment.rows();
  }
  /// Renumbers the rows from `behind` on, before the rows [gone, behind) are freed. `live`: slots whose rows these are, at most.
  void forget_rows(std::size_t gone, std::size_t behind, std::size_t live) {
    if (live != 0) map.shift(static_cast<std::int32_t>(behind), -static_cast<std::int32_t>(behind - gone), live);
    std::erase_if(free, [&](std::uint32_t row) { return row >= gone && row < behind; });
    for (std::uint32_t& row : free) row -= static_cast<std::uint32_t>(row >= behind ? behind - gone : 0);
  }
  /// The first segment that has room for dense rows; size() if none has.
  std::size_t first_open() const {
    std::size_t at = segments.size();
    while (at > 0 && segments[at - 1].rows() == 0) --at;
    if (at > 0 && !segments[at - 1].sealed && segments[at - 1].end < segments[at - 1].block->capacity()) --at;
    return at;
  }
};

}  // namespace kvc::inline KVC_ABI
