#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvc/storage/index_map.hpp"

namespace kvc::inline KVC_ABI {

/// The positions of a head's slots, ascending. They cost nothing while position i is i, four bytes each otherwise, and about one
/// byte each once pack() was called: then a slot stores how far its position is from the one before, and every AnchorSlots-th the
/// position itself.
class PositionList {
 public:
  std::size_t size() const { return packed_ ? gaps_.size() : list_.size(); }
  /// Whether position i is i.
  bool identity() const { return !packed_ && list_.identity(); }
  bool packed() const { return packed_; }
  std::int32_t operator[](std::size_t i) const {
    if (!packed_) return list_[i];
    std::int32_t position = anchors_[i / AnchorSlots];
    for (std::size_t at = i / AnchorSlots * AnchorSlots + 1; at <= i; ++at) position += gaps_[at];
    return position;
  }
  /// The positions themselves, of a list that is neither packed nor identity.
  std::span<const std::int32_t> entries() const { return list_.entries(); }
  void copy_to(std::span<std::int32_t> positions) const {
    std::int32_t position = 0;
    for (std::size_t i = 0; i < positions.size(); ++i)
      positions[i] = position = !packed_               ? list_[i]
                                : i % AnchorSlots == 0 ? anchors_[i / AnchorSlots]
                                                       : position + gaps_[i];
  }
  std::size_t bytes() const { return list_.bytes() + gaps_.capacity() + anchors_.capacity() * sizeof(std::int32_t); }
  std::size_t capacity() const { return list_.capacity(); }

  /// Takes few bytes from now on, if two neighbours are nowhere more than 255 apart. Any change but growing and truncating
  /// makes the list an ordinary one again. Throws what allocation throws.
  void pack() {
    if (packed_ || list_.identity()) return;
    std::vector<std::uint8_t> gaps;
    std::vector<std::int32_t> anchors;
    gaps.reserve(std::max(size(), reserved_));
    anchors.reserve(divide_up(std::max(size(), reserved_), AnchorSlots));
    for (std::size_t i = 0; i < size(); ++i) {
      if (i > 0 && !fits(list_[i - 1], list_[i])) return;
      if (i % AnchorSlots == 0) anchors.push_back(list_[i]);
      gaps.push_back(i == 0 ? std::uint8_t{0} : static_cast<std::uint8_t>(list_[i] - list_[i - 1]));
    }
    gaps_.swap(gaps);
    anchors_.swap(anchors);
    packed_ = true;
    list_ = {};
  }

  /// Obtains what push_back() of these needs.
  void reserve_append(std::span<const std::int32_t> positions) {
    bool breaks = false, packs = true;
    for (std::size_t i = 0; i < positions.size(); ++i) {
      breaks |= positions[i] != static_cast<std::int32_t>(size() + i);
      const std::int32_t before = i > 0 ? positions[i - 1] : size() > 0 ? (*this)[size() - 1] : positions[0];
      packs &= fits(before, positions[i]);
    }
    if (packed_ && !packs) unpack();
    if (packed_) {
      const std::size_t needed = size() + positions.size();
      if (gaps_.capacity() < needed) gaps_.reserve(needed + needed / 16);
      if (anchors_.capacity() < divide_up(needed, AnchorSlots)) anchors_.reserve(divide_up(needed, AnchorSlots) + 1);
      last_ = size() > 0 ? (*this)[size() - 1] : 0;
    } else {
      list_.reserve_more(positions.size(), breaks);
    }
  }
  void push_back(std::int32_t position) {
    if (!packed_) return list_.push_back(position);
    if (gaps_.size() % AnchorSlots == 0) anchors_.push_back(position);
    gaps_.push_back(static_cast<std::uint8_t>(position - last_));
    last_ = position;
  }

  void reserve_keep(std::span<const std::uint8_t> flags) {
    if (packed_) unpack();
    list_.reserve_keep(flags);
  }
  void keep(std::span<const std::uint8_t> flags) { list_.keep(flags); }
  void truncate(std::size_t size) {
    if (!packed_) return list_.truncate(size);
    gaps_.resize(size);
    anchors_.resize(divide_up(size, AnchorSlots));
  }
  /// Undoes push_back() until `size` positions are left, of a list that was identity or was not before them.
  void revert(std::size_t size, bool was_identity) { packed_ ? truncate(size) : list_.revert(size, was_identity); }
  void reserve(std::size_t size) {
    reserved_ = std::max(reserved_, size);
    if (!packed_) return list_.reserve(size);
    gaps_.reserve(size);
    anchors_.reserve(divide_up(size, AnchorSlots));
  }

 private:
  static constexpr std::size_t AnchorSlots = 64;

  static bool fits(std::int32_t before, std::int32_t position) { return position - before <= 255; }
  void unpack() {
    IndexMap list;
    list.reserve(size());
    for (std::size_t i = 0; i < size(); ++i) list.push_back((*this)[i]);
    list_ = std::move(list);
    packed_ = false;
    std::vector<std::uint8_t>().swap(gaps_);
    std::vector<std::int32_t>().swap(anchors_);
  }

  IndexMap list_;
  bool packed_ = false;
  std::vector<std::uint8_t> gaps_;     // between a slot's position and the one before
  std::vector<std::int32_t> anchors_;  // the position of every AnchorSlots-th slot
  std::size_t reserved_ = 0;           // there shall be room for so many
  std::int32_t last_ = 0;              // while positions are appended: the newest
};

}  // namespace kvc::inline KVC_ABI
