#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "kvc/attention/queries.hpp"
#include "kvc/storage/head_store.hpp"

namespace kvc::inline KVC_ABI::attention {

inline constexpr float MinusInfinity = -std::numeric_limits<float>::infinity();

/// How many slots of a head stand before the window of a query at `position`.
inline std::size_t slots_before_window(const HeadStore& head, Position window, Position position) {
  return slots_before(head.slots().positions(), position - (window - 1));
}

/// The rows that stand before the windows of the queries of a pass, token by token: a later token sees less of them. Where
/// windows hide nothing, as mostly while tokens are decoded, one comparison tells.
class WindowMask {
 public:
  /// It lives as long as `frame`, whose memory it works in.
  WindowMask(const HeadStore& head, Position window, const Queries& queries, Workspace::Frame& frame) {
    if (window == 0 || head.size() == 0 || queries.tokens == 0) return;
    if (head.slots().position(0) > queries.positions.back() - window) return;
    bounds_ = frame.take<std::uint32_t>(queries.tokens);
    for (std::size_t t = 0; t < queries.tokens; ++t)
      bounds_[t] = static_cast<std::uint32_t>(slots_before_window(head, window, queries.positions[t]));
    if (!head.keys().map().identity()) find_rows(head, frame);
  }

  bool hides() const { return !bounds_.empty(); }
  /// Whether no token sees any of the rows [begin, end).
  bool hides_all(std::size_t begin, std::size_t end) const {
    if (!hides()) return false;
    if (slots_.empty()) return end <= bounds_.front();
    return std::all_of(slots_.begin() + std::ptrdiff_t(begin), slots_.begin() + std::ptrdiff_t(end),
                       [&](std::uint32_t slot) { return slot < bounds_.front(); });
  }
  /// Overwrites the scores of the rows [begin, end), [tokens * group, stride], where a token does not see them.
  void apply(std::size_t begin, std::size_t end, std::size_t group, float* scores, std::size_t stride) const {
    if (!hides() || shows_all(begin, end)) return;
    for (std::size_t row = 0; row < bounds_.size() * group; ++row) {
      const std::size_t bound = bounds_[row / group];
      float* line = scores + row * stride;
      if (slots_.empty())
        std::fill_n(line, bound > begin ? std::min(bound, end) - begin : 0, MinusInfinity);
      else
        for (std::size_t i = begin; i < end; ++i) line[i - begin] = slots_[i] < bound ? MinusInfinity : line[i - begin];
    }
  }

 private:
  bool shows_all(std::size_t begin, std::size_t end) const {
    if (slots_.empty()) return bounds_.back() <= begin;
    return std::all_of(slots_.begin() + std::ptrdiff_t(begin), slots_.begin() + std::ptrdiff_t(end),
                       [&](std::uint32_t slot) { return slot >= bounds_.back(); });
  }
  /// In a head where row i is not slot i: where rows ascend with their slots, the bounds become rows; else every row knows its
  /// slot. Dead rows count as hidden.
  void find_rows(const HeadStore& head, Workspace::Frame& frame) {
    const std::span<const std::int32_t> rows = head.keys().map().entries();
    if (std::ranges::is_sorted(rows)) {
      for (std::uint32_t& bound : bounds_)
        bound = static_cast<std::uint32_t>(bound < rows.size() ? std::size_t(rows[bound]) : head.keys().rows());
      return;
    }
    slots_ = frame.filled<std::uint32_t>(head.keys().rows(), 0);
    for (std::size_t slot = 0; slot < rows.size(); ++slot)
      slots_[static_cast<std::size_t>(rows[slot])] = static_cast<std::uint32_t>(slot);
  }

  std::span<std::uint32_t>
      bounds_;  // per token, the first row that it sees; or the first slot, where `slots_` is not empty
  std::span<std::uint32_t> slots_;  // of the rows
};

}  // namespace kvc::inline KVC_ABI::attention
