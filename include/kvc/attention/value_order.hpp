#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>

#include "kvc/storage/head_store.hpp"

namespace kvc::inline KVC_ABI::attention {

/// Takes weights from the rows of the keys to the rows of the values, in a head where the two differ.
///
/// They differ little: both sides seal the same tokens in the same order, only not at the same time. So most slots lie in
/// long stretches in which a value's row is its key's row plus a constant, with dead rows in the same places:
///
///   key rows    | a b . c d e . f g | s t | h i j        s, t: survivors of a freed block, among other slots' rows
///   value rows  | a b . c d e . f | s t | g h i j        stretches: a … f, g, h i j; loose: g, s, t
///
/// Stretches are copied whole; slots in short ones, or in ones that lie among another's rows, are loose and go one by one.
class ValueOrder {
 public:
  /// It lives as long as `frame`, whose memory it works in.
  ValueOrder(const HeadStore& head, Workspace::Frame& frame)
      : workspace_(frame.workspace()),
        slots_(head.size()),
        value_rows_(head.values().rows()),
        keys_(rows_of(head.keys().map(), frame)),
        values_(rows_of(head.values().map(), frame)),
        loose_(frame.take<std::uint32_t>(slots_)),
        stretches_(frame.take<Stretch>(slots_ / ShortestStretch)) {
    find_stretches();
    settle_overlaps();
  }

  /// target[value row] = weights[key row] of every slot, 0 in dead rows. Weights of dead key rows are 0; while it works, those
  /// of loose slots are too.
  void move(float* weights, float* target) const {
    Workspace::Frame frame(workspace_);
    const auto saved = frame.take(loose_count_);
    for (std::size_t i = 0; i < loose_count_; ++i) {
      float& weight = weights[keys_[loose_[i]]];
      saved[i] = weight;
      weight = 0;
    }
    std::size_t filled = 0;
    for (const Stretch& stretch : stretches_) {
      std::fill(target + filled, target + stretch.value, 0.0f);
      std::copy_n(weights + stretch.key, stretch.rows, target + stretch.value);
      filled = stretch.value + stretch.rows;
    }
    std::fill(target + filled, target + value_rows_, 0.0f);
    for (std::size_t i = 0; i < loose_count_; ++i) {
      target[values_[loose_[i]]] = saved[i];
      weights[keys_[loose_[i]]] = saved[i];
    }
  }

 private:
  static constexpr std::size_t ShortestStretch = 32, AtOnce = 16;
  struct Stretch {
    std::size_t slot, slots, key, value, rows;

    bool overlaps(const Stretch& other) const {
      const auto meet = [&](std::size_t a, std::size_t b) { return a < b + other.rows && b < a + rows; };
      return meet(key, other.key) || meet(value, other.value);
    }
  };

  static const std::int32_t* rows_of(const IndexMap& map, Workspace::Frame& frame) {
    if (!map.identity()) return map.entries().data();
    const auto memory = frame.take<std::int32_t>(map.size());
    std::iota(memory.begin(), memory.end(), 0);
    return memory.data();
  }

  void find_stretches() {
    std::size_t count = 0;
    for (std::size_t slot = 0, end = 0; slot < slots_; slot = end) {
      end = end_of_stretch(slot);
      const Stretch stretch{slot, end - slot, static_cast<std::size_t>(keys_[slot]),
                            static_cast<std::size_t>(values_[slot]),
                            static_cast<std::size_t>(keys_[end - 1] - keys_[slot]) + 1};
      if (stretch.slots >= ShortestStretch)
        stretches_[count++] = stretch;
      else
        loosen(stretch);
    }
    stretches_ = stretches_.first(count);
  }
  std::size_t end_of_stretch(std::size_t slot) const {
    const std::int32_t distance = keys_[slot] - values_[slot];
    ++slot;
    for (; slot + AtOnce <= slots_; slot += AtOnce) {
      std::int32_t breaks = 0;  // other distances, and descents: a negative number's sign is in every bit
      for (std::size_t i = slot; i < slot + AtOnce; ++i)
        breaks |= ((keys_[i] - values_[i]) ^ distance) | (keys_[i] - keys_[i - 1]) >> 31;
      if (breaks != 0) break;
    }
    while (slot < slots_ && keys_[slot] - values_[slot] == distance && keys_[slot] > keys_[slot - 1]) ++slot;
    return slot;
  }
  void loosen(const Stretch& stretch) {
    for (std::size_t slot = stretch.slot; slot < stretch.slot + stretch.slots; ++slot)
      loose_[loose_count_++] = static_cast<std::uint32_t>(slot);
  }

  /// Of stretches that lie among each other's rows, the longest stays one.
  void settle_overlaps() {
    std::ranges::sort(stretches_, std::greater<>(), &Stretch::rows);
    std::size_t kept = 0;
    for (const Stretch& stretch : stretches_) {
      const auto settled = stretches_.first(kept);
      if (std::ranges::any_of(settled, [&](const Stretch& other) { return stretch.overlaps(other); }))
        loosen(stretch);
      else
        stretches_[kept++] = stretch;
    }
    stretches_ = stretches_.first(kept);
    std::ranges::sort(stretches_, std::less<>(), &Stretch::value);
  }

  Workspace& workspace_;
  std::size_t slots_, value_rows_;
  const std::int32_t *keys_, *values_;
  std::span<std::uint32_t> loose_;
  std::size_t loose_count_ = 0;
  std::span<Stretch> stretches_;
};

}  // namespace kvc::inline KVC_ABI::attention
