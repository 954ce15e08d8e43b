#pragma once
// How a RowStore seals: which dense rows become codes, and where their codes go. Rows in slot order keep their numbers; others
// move behind the sealed ones.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "kvc/storage/row_store.hpp"

namespace kvc::inline KVC_ABI {

inline std::span<const std::uint32_t> RowStore::seal_candidates(std::size_t least) const {
  const std::size_t slots = map_.size();
  auto found = detail::scratch<struct CandidatesPurpose, std::uint32_t>(slots);
  if (slots <= stream_.sinks + stream_.recent) return {};
  std::size_t sealed_dead = 0;
  if (dead_rows() != 0)
    for (const Segment& segment : segments_) sealed_dead += segment.sealed ? segment.dead : 0;
  // From the newest backwards: the dense slots lie together at the end, so this stops early.
  std::size_t dense_left = slots - (sealed_count_ - sealed_dead), begin = slots;
  if (dense_left < least) return {};
  for (std::size_t slot = slots; slot-- > stream_.sinks && dense_left > 0;) {
    if (in_sealed_rows(static_cast<std::size_t>(map_[slot]))) continue;
    --dense_left;
    if (slot + stream_.recent < slots) found[--begin] = static_cast<std::uint32_t>(slot);
  }
  return found.subspan(begin);
}

inline std::size_t RowStore::sealed_segment(std::size_t at, std::size_t rows) {
  if (at > 0 && segments_[at - 1].sealed) {
    Segment& last = segments_[at - 1];
    if (last.end + rows <= last.block->capacity()) return own(last), at - 1;
  }
  segments_.insert(segments_.begin() + static_cast<std::ptrdiff_t>(at),
                   Segment{Block::make(sealed_, sealed_capacity(rows), memory_), 0, 0, 0, true});
  return at;
}

inline void RowStore::encode_sealed(std::size_t index, ConstRows rows) {
  Segment& segment = segments_[index];
  sealed_->encode(rows, segment.block->data(), segment.block->capacity(), segment.end);
  segment.end += rows.count;
}

inline std::size_t RowStore::sealed_room(std::size_t at, std::size_t wanted) const {
  if (at == 0 || !segments_[at - 1].sealed || sealed_->granule() > 1) return wanted;
  const std::size_t room = segments_[at - 1].block->capacity() - segments_[at - 1].end;
  return room == 0 ? wanted : std::min(room, wanted);
}

inline void RowStore::seal_in_order(std::size_t first, std::size_t count) {
  while (count > 0) {
    std::size_t at = segment_of(first);
    if (first > segments_[at].first) at = split(at, first);
    const std::size_t taken = sealed_room(at, count);
    auto rows = detail::scratch<struct SealPurpose>(taken * dim());
    gather(first, {rows.data(), taken, dim()});
    const std::size_t sealed = sealed_segment(at, taken);
    encode_sealed(sealed, {rows.data(), taken, dim()});
    std::size_t left = taken, next = sealed + 1;
    while (left > 0) {
      const std::size_t consumed = std::min(left, segments_[next].rows());
      segments_[next].begin += consumed;
      left -= consumed;
      if (segments_[next].rows() == 0) segments_.erase(segments_.begin() + static_cast<std::ptrdiff_t>(next));
    }
    number_from(sealed);
    first += taken;
    count -= taken;
  }
}

inline std::size_t RowStore::split(std::size_t at, std::size_t row) {
  const std::size_t count = row - segments_[at].first;
  auto rows = detail::scratch<struct SplitPurpose>(count * dim());
  segments_[at].decode(segments_[at].first, {rows.data(), count, dim()});
  Segment front{Block::make(dense_, round_up(count, TileLanes), memory_), 0, count};
  dense_->encode({rows.data(), count, dim()}, front.block->data(), front.block->capacity(), 0);
  segments_[at].begin += count;
  segments_.insert(segments_.begin() + static_cast<std::ptrdiff_t>(at), std::move(front));
  number();
  return at + 1;
}

inline void RowStore::seal_scattered(std::span<const std::uint32_t> slots) {
  while (!slots.empty()) {
    const std::size_t at = behind_sealed(), taken = sealed_room(at, slots.size());
    auto rows = detail::scratch<struct SealPurpose>(taken * dim());
    for (std::size_t i = 0; i < taken; ++i) {
      gather(slots[i], {rows.data() + i * dim(), 1, dim()});
      ++segments_[segment_of(static_cast<std::size_t>(map_[slots[i]]))].dead;
    }
    const std::size_t sealed = sealed_segment(at, taken);
    encode_sealed(sealed, {rows.data(), taken, dim()});
    slots_moved_to(sealed, slots.first(taken));
    slots = slots.subspan(taken);
  }
}

inline void RowStore::slots_moved_to(std::size_t sealed, std::span<const std::uint32_t> slots) {
  number_from(sealed);
  const auto behind = static_cast<std::int32_t>(segments_[sealed].first + segments_[sealed].rows());
  const auto inserted = static_cast<std::int32_t>(slots.size());
  const auto unmoved = static_cast<std::size_t>(
      std::ranges::count_if(slots, [&](std::uint32_t slot) { return map_[slot] >= behind - inserted; }));
  map_.shift(behind - inserted, inserted, live_from(sealed + 1) + unmoved);
  for (std::size_t i = 0; i < slots.size(); ++i) map_.set(slots[i], behind - inserted + static_cast<std::int32_t>(i));
  sweep();
}

inline std::size_t RowStore::behind_sealed() const {
  std::size_t at = 0;
  for (std::size_t i = 0; i < segments_.size(); ++i)
    if (segments_[i].sealed) at = i + 1;
  return at;
}

inline void RowStore::shrink_tail() {
  std::size_t first = 0;
  while (first < segments_.size() && (segments_[first].sealed || segments_[first].first < sealed_first_)) ++first;
  if (first == segments_.size() || segments_[first].dead != 0) return;
  if (segments_[first].begin < TransientRows) return;
  const std::size_t begin = segments_[first].first, count = rows() - begin;
  auto values = detail::scratch<struct ShrinkPurpose>(count * dim());
  for (std::size_t i = first; i < segments_.size(); ++i) {
    if (segments_[i].dead != 0) return;
    segments_[i].decode(segments_[i].first,
                        {values.data() + (segments_[i].first - begin) * dim(), segments_[i].rows(), dim()});
  }
  segments_.resize(first);
  for (std::size_t done = 0; done < count;) {
    const std::size_t taken = std::min(count - done, TransientRows);
    Segment segment{Block::make(dense_, TransientRows, memory_), 0, taken, 0, false, begin + done};
    dense_->encode({values.data() + done * dim(), taken, dim()}, segment.block->data(), TransientRows, 0);
    segments_.push_back(std::move(segment));
    done += taken;
  }
  number();
}

}  // namespace kvc
