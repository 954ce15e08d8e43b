#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvc/storage/index_map.hpp"
#include "kvc/tiles.hpp"

namespace kvc::inline KVC_ABI {

/// The positions of a head's slots, ascending. They cost nothing while position i is i, four bytes each otherwise, and about one
/// byte each once pack() was called: then a slot stores how far its position is from the one before, and every AnchorSlots-th, and
/// every one that is further away than a byte can say, the position itself.
class PositionList {
 public:
  std::size_t size() const { return packed_ ? gaps_.size() : list_.size(); }
  /// Whether position i is i.
  bool identity() const { return !packed_ && list_.identity(); }
  bool packed() const { return packed_; }
  std::int32_t operator[](std::size_t i) const {
    if (!packed_) return list_[i];
    std::int32_t position = anchors_[i / AnchorSlots];
    for (std::size_t at = i / AnchorSlots * AnchorSlots + 1; at <= i; ++at) position = next(position, at);
    return position;
  }
  /// The positions themselves, of a list that is neither packed nor identity.
  std::span<const std::int32_t> entries() const { return list_.entries(); }
  void copy_to(std::span<std::int32_t> positions) const {
    std::int32_t position = 0;
    for (std::size_t i = 0; i < positions.size(); ++i) {
      if (!packed_)
        position = list_[i];
      else
        position = i % AnchorSlots == 0 ? anchors_[i / AnchorSlots] : next(position, i);
      positions[i] = position;
    }
  }
  std::size_t bytes() const {
    return list_.bytes() + gaps_.capacity() + anchors_.capacity() * sizeof(std::int32_t) +
           far_.capacity() * sizeof(Far);
  }
  /// How many positions there is room for.
  std::size_t capacity() const { return std::max(list_.capacity(), gaps_.capacity()); }

  /// Takes few bytes from now on. Any change but growing and truncating makes the list an ordinary one again. Throws what
  /// allocation throws.
  [[gnu::cold]] void pack() {
    if (packed_ || list_.identity()) return;
    std::vector<std::uint8_t> gaps;
    std::vector<std::int32_t> anchors;
    std::vector<Far> far;
    gaps.reserve(std::max(size(), reserved_));
    anchors.reserve(divide_up(std::max(size(), reserved_), AnchorSlots));
    for (std::size_t i = 0; i < size(); ++i) {
      const std::int32_t gap = i % AnchorSlots == 0 ? 0 : list_[i] - list_[i - 1];
      if (i % AnchorSlots == 0) anchors.push_back(list_[i]);
      if (gap >= FarGap) far.push_back({static_cast<std::uint32_t>(i), list_[i]});
      gaps.push_back(static_cast<std::uint8_t>(std::min(gap, FarGap)));
    }
    far.shrink_to_fit();
    gaps_.swap(gaps);
    anchors_.swap(anchors);
    far_.swap(far);
    packed_ = true;
    list_ = {};
  }

  /// Obtains what push_back() of these needs.
  void reserve_append(std::span<const std::int32_t> positions) {
    if (packed_) {
      last_ = size() > 0 ? (*this)[size() - 1] : 0;
      std::size_t far = far_.size();
      for (std::size_t i = 0; i < positions.size(); ++i)
        if (positions[i] - (i > 0 ? positions[i - 1] : last_) >= FarGap) ++far;
      far_.reserve(far);
      const std::size_t needed = size() + positions.size();
      if (gaps_.capacity() < needed) gaps_.reserve(needed + needed / 16);
      if (anchors_.capacity() < divide_up(needed, AnchorSlots)) anchors_.reserve(divide_up(needed, AnchorSlots) + 1);
    } else {
      bool breaks = false;
      for (std::size_t i = 0; i < positions.size(); ++i)
        breaks |= positions[i] != static_cast<std::int32_t>(size() + i);
      list_.reserve_more(positions.size(), breaks);
    }
  }
  void push_back(std::int32_t position) {
    if (!packed_) return list_.push_back(position);
    const std::int32_t gap = gaps_.size() % AnchorSlots == 0 ? 0 : position - last_;
    if (gaps_.size() % AnchorSlots == 0) anchors_.push_back(position);
    if (gap >= FarGap) far_.push_back({static_cast<std::uint32_t>(gaps_.size()), position});
    gaps_.push_back(static_cast<std::uint8_t>(std::min(gap, FarGap)));
    last_ = position;
  }

  /// An empty list becomes one of explicit positions.
  void restore(std::vector<std::int32_t> positions) noexcept { list_.restore(std::move(positions)); }
  /// The same for a list that takes few bytes.
  void restore_packed(std::span<const std::int32_t> positions) {
    gaps_.reserve(positions.size());
    anchors_.reserve(divide_up(positions.size(), AnchorSlots));
    packed_ = true;
    std::int32_t last = 0;
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const std::int32_t position = positions[i], gap = i % AnchorSlots == 0 ? 0 : position - last;
      if (i % AnchorSlots == 0) anchors_.push_back(position);
      if (gap >= FarGap) far_.push_back({static_cast<std::uint32_t>(i), position});
      gaps_.push_back(static_cast<std::uint8_t>(std::min(gap, FarGap)));
      last = position;
    }
  }
  /// An empty list becomes 0, 1, 2, ….
  void restore_identity(std::size_t size) noexcept { list_.reset(size); }

  void reserve_keep(std::span<const std::uint8_t> flags) {
    if (packed_) unpack();
    list_.reserve_keep(flags);
  }
  void keep(std::span<const std::uint8_t> flags) { list_.keep(flags); }
  /// Adds `change` to the positions of slots [begin, end), which ascend with all others then. Throws what allocation throws, perhaps
  /// in the middle of it: it is for a list that nobody sees yet.
  void shift(std::size_t begin, std::size_t end, std::int32_t change) {
    const bool packed = packed_;
    if (packed) unpack();
    list_.add(begin, end, change);
    list_.settle();
    if (packed) pack();
  }
  void truncate(std::size_t size) {
    if (!packed_) return list_.truncate(size);
    while (!far_.empty() && far_.back().slot >= size) far_.pop_back();
    gaps_.resize(size);
    anchors_.resize(divide_up(size, AnchorSlots));
  }
  /// Undoes push_back() until `size` positions are left, of a list that was identity or was not before them.
  void revert(std::size_t size, bool was_identity) { packed_ ? truncate(size) : list_.revert(size, was_identity); }
  void reserve(std::size_t size) {
    reserved_ = std::max(reserved_, size);
    if (!packed_) list_.reserve(size);
    gaps_.reserve(size);
    anchors_.reserve(divide_up(size, AnchorSlots));
  }

 private:
  static constexpr std::size_t AnchorSlots = 64;

  /// A gap of this and more is not said by the byte.
  static constexpr std::int32_t FarGap = 255;
  struct Far {
    std::uint32_t slot;
    std::int32_t position;
  };

  /// The position of slot `i`, which has no anchor, behind one at `position`.
  std::int32_t next(std::int32_t position, std::size_t i) const {
    if (gaps_[i] < FarGap) return position + gaps_[i];
    return std::ranges::lower_bound(far_, static_cast<std::uint32_t>(i), {}, &Far::slot)->position;
  }
  void unpack() {
    IndexMap list;
    list.reserve(size());
    for (std::size_t i = 0; i < size(); ++i) list.push_back((*this)[i]);
    list_ = std::move(list);
    packed_ = false;
    std::vector<std::uint8_t>().swap(gaps_);
    std::vector<std::int32_t>().swap(anchors_);
    std::vector<Far>().swap(far_);
  }

  IndexMap list_;
  bool packed_ = false;
  std::vector<std::uint8_t> gaps_;     // between a slot's position and the one before
  std::vector<std::int32_t> anchors_;  // the position of every AnchorSlots-th slot
  std::vector<Far> far_;               // slots that are far behind the one before, ascending
  std::size_t reserved_ = 0;           // there shall be room for so many
  std::int32_t last_ = 0;              // while positions are appended: the newest
};

/// How many slots of a head stand before a position.
inline std::size_t slots_before(const PositionList& positions, std::int32_t from) {
  std::size_t begin = 0, end = positions.size();
  while (begin < end) {
    const std::size_t middle = (begin + end) / 2;
    if (positions[middle] < from)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

}  // namespace kvc::inline KVC_ABI
