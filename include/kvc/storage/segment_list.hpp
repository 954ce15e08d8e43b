#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "kvc/storage/segment.hpp"

namespace kvc::inline KVC_ABI {

/// The segments that a head's rows lie in, in the order of the rows' numbers. Sealed ones lie together:
///
///   | dense sinks | sealed | sealed | … | dense | dense (open) |
///   row 0          …                                 rows() - 1
class SegmentList {
 public:
  std::span<const Segment> all() const { return segments_; }
  std::size_t size() const { return segments_.size(); }
  std::size_t capacity() const { return segments_.capacity(); }
  bool empty() const { return segments_.empty(); }
  Segment& operator[](std::size_t index) { return segments_[index]; }
  const Segment& operator[](std::size_t index) const { return segments_[index]; }
  Segment& back() { return segments_.back(); }
  const Segment& back() const { return segments_.back(); }

  std::size_t rows() const { return segments_.empty() ? 0 : segments_.back().first + segments_.back().rows(); }
  /// Rows of sealed segments, dead ones included.
  std::size_t sealed_rows() const { return sealed_rows_; }
  std::size_t first_sealed_row() const { return sealed_first_; }
  bool in_sealed(std::size_t row) const { return row >= sealed_first_ && row < sealed_first_ + sealed_rows_; }
  /// Index of the segment that holds `row`.
  std::size_t holding(std::size_t row) const {
    const auto after =
        std::upper_bound(segments_.begin(), segments_.end(), row,
                         [](std::size_t number, const Segment& segment) { return number < segment.first; });
    return static_cast<std::size_t>(after - segments_.begin()) - 1;
  }
  /// Index behind the last sealed segment.
  std::size_t behind_sealed() const {
    std::size_t at = 0;
    for (std::size_t i = 0; i < segments_.size(); ++i)
      if (segments_[i].sealed) at = i + 1;
    return at;
  }
  /// Live rows of the segments from `index` on.
  std::size_t live_from(std::size_t index) const {
    std::size_t live = 0;
    for (; index < segments_.size(); ++index) live += segments_[index].rows() - segments_[index].dead;
    return live;
  }
  /// Dead rows of sealed segments.
  std::size_t sealed_dead() const {
    std::size_t dead = 0;
    for (const Segment& segment : segments_) dead += segment.sealed ? segment.dead : 0;
    return dead;
  }

  /// Room for `count` more segments, so that adding them allocates nothing.
  void reserve(std::size_t count) {
    const std::size_t needed = segments_.size() + count;
    if (segments_.capacity() < needed) segments_.reserve(std::max(needed, 2 * segments_.size()));
  }
  /// Behind all others; its first row follows the last.
  void push_back(Segment segment) {
    segment.first = rows();
    segments_.push_back(std::move(segment));
  }
  void pop_back() { segments_.pop_back(); }
  void clear() {
    segments_.clear();
    number();
  }
  void insert(std::size_t at, Segment segment) {
    segments_.insert(segments_.begin() + static_cast<std::ptrdiff_t>(at), std::move(segment));
  }
  void erase(std::size_t at) { erase(at, at + 1); }
  void erase(std::size_t begin, std::size_t end) {
    segments_.erase(segments_.begin() + static_cast<std::ptrdiff_t>(begin),
                    segments_.begin() + static_cast<std::ptrdiff_t>(end));
  }
  /// Drops the segments from `index` on.
  void cut(std::size_t index) {
    segments_.erase(segments_.begin() + static_cast<std::ptrdiff_t>(index), segments_.end());
  }
  template <class Condition>
  void erase_if(Condition condition) {
    std::erase_if(segments_, condition);
  }

  /// Recomputes the row numbers after segments changed.
  void number() {
    sealed_first_ = sealed_rows_ = 0;
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
      if (sealed_rows_ == 0) sealed_first_ = segment.first;
      sealed_rows_ = first - sealed_first_;  // sealed segments lie together
    }
  }

 private:
  std::vector<Segment> segments_;
  std::size_t sealed_first_ = 0, sealed_rows_ = 0;
};

}  // namespace kvc::inline KVC_ABI
