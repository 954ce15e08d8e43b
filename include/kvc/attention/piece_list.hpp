#pragma once
#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/storage/segment.hpp"

namespace kvc::inline KVC_ABI::attention {

/// Rows of a head that are scored, exponentiated and summed before the next ones: their scores stay in the nearest cache.
/// Chunks begin at fixed rows, so a query's result does not depend on how its prompt was cut into calls.
inline constexpr std::size_t ChunkRows = 256;

/// A segment as the kernels ask for it.
struct Piece {
  const Codec* codec;
  const std::byte* data;        // of the block
  std::size_t capacity, begin;  // of the block; where the piece begins in it
  std::size_t first, end;       // rows of the head
  const float* norms;           // of the block's rows; null: 1
  std::size_t segment;          // its number
};

/// Finds the pieces that hold rows, which are read from the first to the last. Segments and block headers lie anywhere in
/// memory, and a read of one waits behind all the prefetches of rows before it. So the next pieces are copied out together,
/// and while rows are read their bookkeeping is not.
class PieceList {
 public:
  /// `after`: the segments that will be read after these.
  explicit PieceList(std::span<const Segment> segments, std::span<const Segment> after = {}) : segments_(segments) {
    if (after.empty()) return;
    const Block& block = *after[0].block;
    after_ = {block.data(), block.capacity(), block.bytes(), after[0].begin};
  }

  /// The piece that holds `row`, null past the end; valid until the next call.
  const Piece* find(std::size_t row) {
    if (count_ == 0 || row < pieces_[0].first || row >= pieces_[count_ - 1].end) gather(segment_of(row));
    if (count_ == 0) return nullptr;
    const Piece* piece = holding(row, pieces_[cursor_].first <= row ? cursor_ : 0);
    if (!piece) return nullptr;
    if (piece != pieces_ && next_ < segments_.size() && pieces_[count_ - 1].end <= row + ChunkRows) {
      gather(piece->segment);
      piece = pieces_;
    }
    cursor_ = static_cast<std::size_t>(piece - pieces_);
    return piece;
  }

  /// How many bytes behind `row` of the piece found last the row lies that is read a chunk later, or the first row of what comes
  /// after; 0 where they lie in another kind of place. Memory takes about as long as a chunk is worked on, so that row is
  /// prefetched now.
  std::ptrdiff_t bytes_to_next_chunk(std::size_t row) const {
    const Piece &here = pieces_[cursor_], *there = holding(row + ChunkRows, cursor_);
    const std::size_t in_block = here.begin + (row - here.first);
    if (there && here.codec == there->codec && here.capacity == there->capacity &&
        there->begin + (row + ChunkRows - there->first) == in_block)
      return there->data - here.data;
    const bool alike = here.capacity == after_.capacity && in_block == after_.begin &&
                       here.codec->block_bytes(here.capacity) == after_.bytes;
    return alike ? after_.data - here.data : 0;
  }

 private:
  static constexpr std::size_t Capacity = 32;  // 8,192 rows of a prompt, and two chunks of the smallest blocks

  std::size_t segment_of(std::size_t row) const {
    if (row == 0) return 0;  // seldom worth a search: attention begins in front
    const auto behind =
        std::upper_bound(segments_.begin(), segments_.end(), row,
                         [](std::size_t number, const Segment& segment) { return number < segment.first; });
    return static_cast<std::size_t>(behind - segments_.begin()) - 1;
  }
  const Piece* holding(std::size_t row, std::size_t from) const {
    while (from < count_ && pieces_[from].end <= row) ++from;
    return from < count_ ? pieces_ + from : nullptr;
  }

  /// Copies out the segments from number `from` on.
  void gather(std::size_t from) {
    cursor_ = count_ = 0;
    for (next_ = from; next_ < segments_.size() && count_ < Capacity; ++next_) {
      const Segment& segment = segments_[next_];
      const Block& block = *segment.block;
      if (segment.rows() == 0) continue;
      pieces_[count_++] = {&block.codec(),
                           block.data(),
                           block.capacity(),
                           segment.begin,
                           segment.first,
                           segment.first + segment.rows(),
                           segment.norms ? segment.norms->data() : nullptr,
                           next_};
    }
  }

  struct Start {
    const std::byte* data = nullptr;
    std::size_t capacity = 0, bytes = 0, begin = 0;
  };

  std::span<const Segment> segments_;
  Start after_;
  std::size_t next_ = 0, count_ = 0, cursor_ = 0;  // the segment behind the list, pieces known, the one found last
  Piece pieces_[Capacity];
};

}  // namespace kvc::inline KVC_ABI::attention
