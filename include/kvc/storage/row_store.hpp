#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "kvc/stats.hpp"
#include "kvc/storage/index_map.hpp"
#include "kvc/storage/scratch.hpp"
#include "kvc/storage/segment.hpp"
#include "kvc/stream.hpp"

namespace kvc::inline KVC_ABI {

/// The keys, or the values, of one head. Rows are numbered through the segments:
///
///   | dense sinks | sealed | sealed | … | dense | dense (open) |
///   row 0          …                                 rows() - 1
///
/// Slot i lies in row map()[i]; the map costs nothing until an eviction breaks the order. Rows never move while decoding: an
/// evicted dense row is reused (if the stream never seals), an evicted sealed row is dead until its block is.
class RowStore {
 public:
  /// Rows per block: of a prompt, of tokens appended one by one, of tokens that will be sealed soon, and of codes sealed
  /// one by one. Large blocks feed the kernels, small ones waste less.
  static constexpr std::size_t PromptRows = 256, OpenRows = 64, TransientRows = 16, SealedRows = 64;

  /// `sealed` is null if rows stay dense.
  RowStore(std::shared_ptr<const Codec> dense, std::shared_ptr<const Codec> sealed, const Stream& stream,
           std::pmr::memory_resource* memory)
      : dense_(std::move(dense)), sealed_(std::move(sealed)), stream_(stream), memory_(memory) {}

  std::size_t dim() const { return dense_->dim(); }
  std::size_t rows() const { return segments_.empty() ? 0 : segments_.back().first + segments_.back().rows(); }
  std::size_t dead_rows() const { return rows() - map_.size(); }
  std::span<const Segment> segments() const { return segments_; }
  const IndexMap& map() const { return map_; }
  bool seals() const { return sealed_ != nullptr; }
  std::size_t sealed_rows() const { return sealed_count_; }
  /// Whether dropping the same slots from both stores, whose maps agree, leaves maps that agree: nothing of them is sealed,
  /// and their segments end, and die, at the same rows.
  bool moves_like(const RowStore& other) const {
    return !seals() && !other.seals() && sealed_count_ == 0 && other.sealed_count_ == 0 &&
           std::ranges::equal(segments_, other.segments_, [](const Segment& a, const Segment& b) {
             return a.rows() == b.rows() && a.dead == b.dead;
           });
  }

  /// Appends rows behind all others, as new slots.
  void append(ConstRows rows) {
    for (std::size_t done = 0; done < rows.count;) {
      Segment& open = open_segment(rows.count - done);
      const std::size_t count = std::min(rows.count - done, open.block->capacity() - open.end);
      dense_->encode(rows.subrows(done, count), open.block->data(), open.block->capacity(), open.end);
      for (std::size_t i = 0; i < count; ++i) map_.push_back(static_cast<std::int32_t>(open.first + open.rows() + i));
      open.end += count;
      done += count;
    }
  }
  /// Appends one row as a new slot, in the place of an evicted row if there is one.
  void append_reusing(ConstRows row) {
    if (free_.empty()) return append(row);
    const std::size_t place = free_.back();
    free_.pop_back();
    Segment& segment = segments_[segment_of(place)];
    --segment.dead;
    write(segment, place, row);
    map_.push_back(static_cast<std::int32_t>(place));
  }

  /// Drops the slots whose flag is 0. With `compact`, the rows that stay move together, in slot order.
  void keep(std::span<const std::uint8_t> flags, bool compact) {
    if (compact && sealed_count_ == 0) return compact_to(flags);
    for (std::size_t dropped = detail::first_unset(flags); dropped < flags.size();
         dropped += 1 + detail::first_unset(flags.subspan(dropped + 1)))
      kill(static_cast<std::size_t>(map_[dropped]));
    map_.keep(flags);
    sweep();
    if (seals()) release_mostly_dead();
  }

  /// Drops the newest slots, so that `slots` stay.
  void truncate(std::size_t slots) {
    if (!map_.identity() || dead_rows() != 0) {
      // Rows at the very end go, so that the newest slots left lie last, as after an append; others stay behind dead.
      for (std::size_t slot = map_.size(); slot-- > slots;)
        if (!drop_last_row(static_cast<std::size_t>(map_[slot]))) kill(static_cast<std::size_t>(map_[slot]));
      map_.truncate(slots);
      number();
      return sweep();
    }
    map_.truncate(slots);
    while (!segments_.empty() && segments_.back().first >= slots) segments_.pop_back();
    if (!segments_.empty()) {
      Segment& last = segments_.back();
      const std::size_t surplus = last.first + last.rows() - slots;
      // Half a group that shares scales cannot be cut off; its rows stay behind dead.
      if (can_shorten(last))
        last.end -= surplus;
      else
        last.dead += surplus;
    }
    number();
  }

  /// Gives a slot another row; a sealed slot goes back to a dense row.
  void rewrite(std::size_t slot, std::span<const float> values) {
    const ConstRows row(values.data(), 1, values.size());
    const auto place = static_cast<std::size_t>(map_[slot]);
    if (!in_sealed_rows(place)) return write(segments_[segment_of(place)], place, row);
    rewrite_behind(slot, place, row);
    sweep();
  }

  /// What directions shared between layers are encoded with.
  const std::shared_ptr<const Codec>& sharing_codec() const { return sealed_ ? sealed_ : dense_; }
  const std::shared_ptr<const Codec>& dense_codec() const { return dense_; }
  /// A block of directions that two layers read, the slots whose rows they are, and their norms in one of the layers.
  struct SharedRows {
    std::vector<std::uint32_t> slots;
    std::shared_ptr<Block> block;
    std::shared_ptr<const std::vector<float>> norms;
  };
  /// Gives slots the rows of shared blocks. Dense rows between those that they leave move together.
  void share(std::span<const SharedRows> blocks) {
    for (const SharedRows& shared : blocks) {
      for (const std::uint32_t slot : shared.slots) ++segments_[segment_of(static_cast<std::size_t>(map_[slot]))].dead;
      // Before a block of codes that still fills up, or the next code would begin another one.
      std::size_t at = behind_sealed();
      if (at > 0 && segments_[at - 1].end < segments_[at - 1].block->capacity()) --at;
      segments_.insert(segments_.begin() + static_cast<std::ptrdiff_t>(at),
                       Segment{shared.block, 0, shared.slots.size(), 0, true, 0, shared.norms});
      slots_moved_to(at, shared.slots);
    }
    move_behind([&](const Segment& segment) {
      return segment.sealed ? segment.dead * 4 >= segment.block->capacity() * 3 : segment.dead != 0;
    });
    map_.settle();
  }

  /// Seals the oldest dense slots as the stream's rule allows now.
  void seal(bool prompt_end) {
    if (!seals()) return;
    const bool whole = stream_.whole_prompt && prompt_end;
    const std::size_t step = whole ? sealed_->granule() : stream_.batch;
    const std::span<const std::uint32_t> candidates = seal_candidates(step);
    const std::size_t count = candidates.size() / step * step;
    const std::size_t piece = whole ? count : std::max(PromptRows / stream_.batch * stream_.batch, stream_.batch);
    const bool in_order = map_.identity() && dead_rows() == 0;
    for (std::size_t done = 0; done < count;) {
      std::size_t rows = std::min(piece, count - done);
      // Blocks that end where attention's chunks do are read whole.
      if (const std::size_t first = candidates[done];
          in_order && !whole && PromptRows % piece == 0 && first % stream_.batch == 0)
        rows = std::min(rows, piece - first % piece);
      if (in_order)
        seal_in_order(candidates[done], rows);
      else
        seal_scattered(candidates.subspan(done, rows));
      done += rows;
    }
    if (prompt_end && count != 0) shrink_tail();
  }

  /// Rows of slots [first, first + rows.count), decoded.
  void gather(std::size_t first, Rows<float> rows) const {
    for (std::size_t i = 0; i < rows.count;) {
      const auto place = static_cast<std::size_t>(map_[first + i]);
      const Segment& segment = segments_[segment_of(place)];
      std::size_t run = 1;
      while (i + run < rows.count && place + run < segment.first + segment.rows() &&
             static_cast<std::size_t>(map_[first + i + run]) == place + run)
        ++run;
      segment.decode(place, rows.subrows(i, run));
      i += run;
    }
  }

  /// Room for `slots` slots, so that reaching them allocates nothing. `reorders`: evictions will break the slot order.
  void reserve(std::size_t slots, bool reorders) {
    const std::size_t open = open_capacity();
    segments_.reserve(segments_.size() + slots / open + 4 + (seals() ? slots / SealedRows : 0));
    if (reorders) {
      map_.reserve(slots);
      free_.reserve(slots);
    }
  }
  /// Calls visit(bytes, count) for the blocks that reaching `slots` slots one by one asks for.
  template <class Visit>
  void for_each_demand(std::size_t slots, Visit visit) const {
    if (seals()) {
      const std::size_t live = std::min(slots, stream_.sinks + stream_.recent + stream_.batch) + 2 * TransientRows;
      visit(dense_->block_bytes(TransientRows), divide_up(live, TransientRows) + 1);
      const std::size_t capacity = sealed_capacity(stream_.batch);
      visit(sealed_->block_bytes(capacity), divide_up(slots, capacity) + 1);
      return;
    }
    for (std::size_t at = 0; at <= slots; at += open_capacity(at)) visit(dense_->block_bytes(open_capacity(at)), 1);
  }

  void add_to(Stats& stats) const {
    for (const Segment& segment : segments_) {
      const std::size_t used = std::min(segment.block->codec().block_bytes(segment.rows()), segment.block->bytes());
      const std::size_t owners = segment.norms ? 2 : 1;  // two layers share a block of directions
      stats.payload += used / owners;
      stats.slack += (segment.block->bytes() - used) / owners;
      if (segment.norms) stats.metadata += segment.norms->size() * sizeof(float);
      stats.dead += segment.dead;
      stats.metadata += sizeof(Segment) + sizeof(Block) + 2 * sizeof(void*);  // and the shared pointer's counts
    }
    stats.metadata += map_.bytes() + free_.capacity() * sizeof(std::uint32_t);
  }

 private:
  /// A sixteenth of what is there: growth stays cheap and the open block's unused rows stay a small share.
  std::size_t open_capacity() const { return open_capacity(rows()); }
  std::size_t open_capacity(std::size_t rows) const {
    if (seals()) return TransientRows;
    return std::clamp(rows / 256 * TileLanes, TileLanes, OpenRows);
  }
  /// Rows sealed one by one share a block; rows that share scales get one of their own size.
  std::size_t sealed_capacity(std::size_t rows) const {
    if (sealed_->granule() > 1 || rows >= SealedRows) return round_up(rows, sealed_->granule());
    return SealedRows;
  }
  bool in_sealed_rows(std::size_t row) const { return row >= sealed_first_ && row < sealed_first_ + sealed_count_; }
  std::size_t segment_of(std::size_t row) const {
    const auto after =
        std::upper_bound(segments_.begin(), segments_.end(), row,
                         [](std::size_t number, const Segment& segment) { return number < segment.first; });
    return static_cast<std::size_t>(after - segments_.begin()) - 1;
  }

  /// The segment's block, copied first if a fork shares it.
  static Block& own(Segment& segment) {
    if (segment.block.use_count() > 1) segment.block = segment.block->clone();
#if !defined(__SANITIZE_THREAD__)
    // A fork that let go of the block on another thread has done reading it. (g++'s thread sanitizer knows no fences.)
    std::atomic_thread_fence(std::memory_order_acquire);
#endif
    return *segment.block;
  }
  void write(Segment& segment, std::size_t place, ConstRows row) {
    Block& block = own(segment);
    dense_->encode(row, block.data(), block.capacity(), segment.begin + (place - segment.first));
  }
  /// The last segment, made dense, owned and open for at least one of `wanted` rows.
  Segment& open_segment(std::size_t wanted) {
    const bool open =
        !segments_.empty() && !segments_.back().sealed && segments_.back().end < segments_.back().block->capacity();
    if (!open) {
      const std::size_t capacity = wanted > open_capacity()
                                       ? std::min(PromptRows, round_up(wanted, TileLanes))
                                       : open_capacity();
      segments_.push_back({.block = Block::make(dense_, capacity, memory_), .first = rows()});
    }
    own(segments_.back());
    return segments_.back();
  }

  /// Moves a slot from `place` to a new dense row.
  void rewrite_behind(std::size_t slot, std::size_t place, ConstRows row) {
    Segment& open = open_segment(1);
    dense_->encode(row, open.block->data(), open.block->capacity(), open.end);
    map_.set(slot, static_cast<std::int32_t>(open.first + open.rows()));
    ++open.end;
    kill(place);
  }

  bool can_shorten(const Segment& segment) const {
    return !segment.sealed || (!segment.norms && sealed_->granule() == 1);
  }
  /// Takes `row` off the end; false if it does not lie there or shares scales with others.
  bool drop_last_row(std::size_t row) {
    Segment& last = segments_.back();
    if (row + 1 != rows() || !can_shorten(last)) return false;
    --last.end;
    if (last.rows() == 0) segments_.pop_back();
    return true;
  }
  void kill(std::size_t row) {
    ++segments_[segment_of(row)].dead;
    if (!seals() && !in_sealed_rows(row)) free_.push_back(static_cast<std::uint32_t>(row));
  }

  /// Recomputes the row numbers after segments changed.
  void number() {
    sealed_first_ = sealed_count_ = 0;
    number_from(0);
  }
  /// The same where all segments before `index` stayed as they are, and none of them is sealed that was not.
  void number_from(std::size_t index) {
    std::size_t first = index == 0 ? 0 : segments_[index - 1].first + segments_[index - 1].rows();
    for (; index < segments_.size(); ++index) {
      Segment& segment = segments_[index];
      segment.first = first;
      first += segment.rows();
      if (!segment.sealed) continue;
      if (sealed_count_ == 0) sealed_first_ = segment.first;
      sealed_count_ = first - sealed_first_;  // sealed segments lie together
    }
  }

  /// Live rows of the segments from `index` on.
  std::size_t live_from(std::size_t index) const {
    std::size_t live = 0;
    for (; index < segments_.size(); ++index) live += segments_[index].rows() - segments_[index].dead;
    return live;
  }
  static bool all_dead(const Segment& segment) {
    return segment.dead == segment.rows();
  }

  /// Frees the segments without a live row and renumbers the rows behind them.
  void sweep() {
    if (erase_dead()) recount_free();
  }
  /// `moving`: slots whose rows count as dead although the map still has them.
  bool erase_dead(std::size_t moving = 0) {
    if (std::none_of(segments_.begin(), segments_.end(), all_dead)) return false;
    // From the last run of dead segments to the first, so that those before it keep their numbers.
    for (std::size_t end = segments_.size(), begin = 0; end > 0; end = begin) {
      begin = end - 1;
      if (!all_dead(segments_[begin])) continue;
      while (begin > 0 && all_dead(segments_[begin - 1])) --begin;
      const std::size_t behind = segments_[end - 1].first + segments_[end - 1].rows();
      if (const std::size_t live = live_from(end))
        map_.shift(static_cast<std::int32_t>(behind), -static_cast<std::int32_t>(behind - segments_[begin].first),
                   live + moving);
    }
    std::erase_if(segments_, all_dead);
    number();
    return true;
  }
  /// The free rows of a store that never seals are those that no slot uses.
  void recount_free() {
    free_.clear();
    if (seals() || dead_rows() == 0) return;
    auto used = detail::scratch<struct RecountPurpose, std::uint8_t>(rows());
    std::fill(used.begin(), used.end(), std::uint8_t{0});
    for (std::size_t slot = 0; slot < map_.size(); ++slot) used[static_cast<std::size_t>(map_[slot])] = 1;
    for (std::size_t row = rows(); row-- > 0;)
      if (!used[row] && !in_sealed_rows(row)) free_.push_back(static_cast<std::uint32_t>(row));
  }

  /// The few rows left in segments that are three quarters dead move behind all others; sealed ones are dense again, to be
  /// sealed with the oldest. So the bytes held stay within a small factor of the slots that live.
  void release_mostly_dead() {
    move_behind([&](const Segment& segment) {
      const bool open = !segment.sealed && &segment == &segments_.back();
      if (open || segment.dead * 4 < segment.rows() * 3) return false;
      // Against the capacity of a sealed block: one that has just been begun still fills up.
      return !segment.sealed || segment.dead * 4 >= segment.block->capacity() * 3;
    });
  }
  /// Moves the live rows of the segments that `leaves` says yes to behind all others, in slot order, as dense rows.
  template <class Leaves>
  void move_behind(Leaves leaves) {
    if (std::none_of(segments_.begin(), segments_.end(), leaves)) return;
    auto slots = detail::scratch<struct MovedSlots, std::uint32_t>(map_.size());
    std::size_t count = 0;
    for (const Segment& segment : segments_)
      if (leaves(segment))
        map_.for_each_within(static_cast<std::int32_t>(segment.first),
                             static_cast<std::int32_t>(segment.first + segment.rows()),
                             [&](std::size_t slot) { slots[count++] = static_cast<std::uint32_t>(slot); });
    std::sort(slots.begin(), slots.begin() + static_cast<std::ptrdiff_t>(count));
    auto rows = detail::scratch<struct MovedRows>(count * dim());
    for (std::size_t i = 0; i < count; ++i) gather(slots[i], {rows.data() + i * dim(), 1, dim()});
    for (std::size_t i = 0; i < count; ++i) ++segments_[segment_of(static_cast<std::size_t>(map_[slots[i]]))].dead;
    erase_dead(count);  // free rows are counted when every slot has a row again
    for (std::size_t done = 0; done < count;) {
      Segment& open = open_segment(seals() ? 1 : count - done);
      const std::size_t taken = std::min(count - done, open.block->capacity() - open.end);
      dense_->encode({rows.data() + done * dim(), taken, dim()}, open.block->data(), open.block->capacity(), open.end);
      for (std::size_t i = 0; i < taken; ++i)
        map_.set(slots[done + i], static_cast<std::int32_t>(open.first + open.rows() + i));
      open.end += taken;
      done += taken;
    }
    recount_free();
  }

  void compact_to(std::span<const std::uint8_t> flags) {
    RowStore fresh(dense_, sealed_, stream_, memory_);
    auto rows = detail::scratch<struct CompactPurpose>(PromptRows * dim());
    std::size_t filled = 0;
    for (std::size_t slot = 0; slot < flags.size();) {
      std::size_t run = 0;  // neighbours are decoded together: a row of keys lies scattered among its tile's
      while (slot + run < flags.size() && flags[slot + run] && filled + run < PromptRows) ++run;
      gather(slot, {rows.data() + filled * dim(), run, dim()});
      filled += run;
      slot += std::max<std::size_t>(run, 1);
      if (filled == PromptRows) fresh.append({rows.data(), std::exchange(filled, 0), dim()});
    }
    fresh.append({rows.data(), filled, dim()});
    segments_.clear();  // and keeps its capacity
    std::ranges::move(fresh.segments_, std::back_inserter(segments_));
    map_.reset(map_count(flags));
    free_.clear();
    number();
  }
  static std::size_t map_count(std::span<const std::uint8_t> flags) {
    return flags.size() - static_cast<std::size_t>(std::count(flags.begin(), flags.end(), std::uint8_t{0}));
  }

  // In row_sealing.hpp.
  /// Dense slots, oldest first, beyond the sinks and without the newest `recent`; none if they must be fewer than `least`.
  std::span<const std::uint32_t> seal_candidates(std::size_t least) const;
  /// A sealed segment with room for `rows` more, at index `at` or right before it; returns its index.
  std::size_t sealed_segment(std::size_t at, std::size_t rows);
  void encode_sealed(std::size_t index, ConstRows rows);
  /// How many of `wanted` rows the open sealed segment before `at` takes; all of them go into a new one if it is full.
  std::size_t sealed_room(std::size_t at, std::size_t wanted) const;
  /// Seals slots [first, first + count) of a store whose rows are in slot order: row numbers do not change.
  void seal_in_order(std::size_t first, std::size_t count);
  /// Moves the rows of a dense segment in front of `row` into a segment of their own; returns the index of the rest.
  std::size_t split(std::size_t at, std::size_t row);
  /// Seals slots whose rows lie anywhere: they get rows behind the sealed ones, and the rows behind those move up.
  void seal_scattered(std::span<const std::uint32_t> slots);
  /// Slots got the last rows of a sealed segment: the rows behind those move up, and their old ones are dead already.
  void slots_moved_to(std::size_t sealed, std::span<const std::uint32_t> slots);
  /// Index behind the last sealed segment.
  std::size_t behind_sealed() const;
  /// After a prompt was sealed, the few dense rows left move out of its large blocks.
  void shrink_tail();

  std::shared_ptr<const Codec> dense_, sealed_;
  Stream stream_;
  std::pmr::memory_resource* memory_;
  std::vector<Segment> segments_;
  IndexMap map_;
  std::vector<std::uint32_t> free_;
  std::size_t sealed_first_ = 0, sealed_count_ = 0;
};

}  // namespace kvc

#include "kvc/storage/row_sealing.hpp"
