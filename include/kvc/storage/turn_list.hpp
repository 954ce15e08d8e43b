#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kvc/abi.hpp"
#include "kvc/storage/runs.hpp"

namespace kvc::inline KVC_ABI {

/// How far the keys of a head's slots are still to be turned: the position of a slot minus the one for which its key was rotated as
/// it lies in storage. Slots whose positions were shifted together have the same turn, so runs of slots are kept. It costs nothing
/// while all turns are 0. Functions whose names begin with `reserve` may throw and change nothing that can be seen.
class TurnList {
 public:
  /// Slots up to `end`, from where the run before it ended.
  struct Run {
    std::uint32_t end = 0;
    std::int32_t turn = 0;
    friend bool operator==(const Run&, const Run&) = default;
  };

  /// Whether all turns are 0.
  bool empty() const { return runs_.empty(); }
  /// The runs of all slots; none if all turns are 0.
  std::span<const Run> runs() const { return runs_; }
  std::int32_t operator[](std::size_t slot) const {
    if (runs_.empty()) return 0;
    return std::ranges::upper_bound(runs_, slot, std::less<>(), &Run::end)->turn;
  }
  std::size_t bytes() const { return runs_.capacity() * sizeof(Run); }

  /// Slots [first, last) of `slots` are turned by `turn` more. Throws what allocation throws, before anything has changed.
  void add(std::size_t first, std::size_t last, std::int32_t turn, std::size_t slots) {
    std::vector<Run> changed;
    changed.reserve(runs_.size() + 4);  // two cuts, and the first run of slots to come
    const auto put = [&](std::size_t begin, std::size_t end, std::int32_t sum) {
      if (begin >= end) return;
      if (!changed.empty() && changed.back().turn == sum)
        changed.back().end = static_cast<std::uint32_t>(end);
      else
        changed.push_back({static_cast<std::uint32_t>(end), sum});
    };
    std::size_t begin = 0;
    const auto split = [&](std::size_t end, std::int32_t known) {
      const std::size_t from = std::clamp(first, begin, end), to = std::clamp(last, begin, end);
      put(begin, from, known);
      put(from, to, known + turn);
      put(to, end, known);
      begin = end;
    };
    for (const Run& run : runs_) split(run.end, run.turn);
    split(slots, 0);  // nothing, unless there were no runs
    runs_.swap(changed);
    forget_zero();
  }

  void reserve_append() {
    if (!runs_.empty() && runs_.capacity() == runs_.size()) runs_.reserve(2 * runs_.size() + 4);
  }
  /// Slots that come behind all others stand where their keys were rotated for.
  void append(std::size_t count) noexcept {
    if (runs_.empty() || count == 0) return;
    if (runs_.back().turn == 0)
      runs_.back().end += static_cast<std::uint32_t>(count);
    else
      runs_.push_back({static_cast<std::uint32_t>(runs_.back().end + count), 0});
  }
  /// Drops the slots whose flag is 0.
  void keep(std::span<const std::uint8_t> flags) noexcept {
    if (runs_.empty()) return;
    std::size_t slot = 0, kept = 0, used = 0;
    for (const Run run : runs_) {
      const std::size_t before = kept;
      kept += static_cast<std::size_t>(
          std::ranges::count_if(flags.subspan(slot, run.end - slot), [](std::uint8_t flag) { return flag != 0; }));
      slot = run.end;
      if (kept == before) continue;
      if (used != 0 && runs_[used - 1].turn == run.turn)
        runs_[used - 1].end = static_cast<std::uint32_t>(kept);
      else
        runs_[used++] = {static_cast<std::uint32_t>(kept), run.turn};
    }
    runs_.resize(used);
    forget_zero();
  }
  /// Drops the newest slots, so that `slots` stay.
  void truncate(std::size_t slots) noexcept {
    if (runs_.empty()) return;
    while (runs_.size() > 1 && runs_[runs_.size() - 2].end >= slots) runs_.pop_back();
    runs_.back().end = static_cast<std::uint32_t>(slots);
    if (slots == 0) runs_.clear();
    forget_zero();
  }
  /// An empty list becomes these runs of at least one slot each, of which neighbours differ and one is not 0.
  void restore(std::vector<Run> runs) noexcept { runs_ = std::move(runs); }
  /// As much room as another list has.
  void reserve_as(const TurnList& other) { runs_.reserve(other.runs_.capacity()); }

 private:
  void forget_zero() noexcept {
    if (runs_.size() == 1 && runs_[0].turn == 0) runs_.clear();
  }

  std::vector<Run> runs_;
};

}  // namespace kvc::inline KVC_ABI
