#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvc/policy/head.hpp"
#include "kvc/policy/parameters.hpp"
#include "kvc/policy/scoring.hpp"
#include "kvc/words.hpp"

namespace kvc::inline KVC_ABI {

/// Where the heads end that belong together with heads[begin], in a list that is layer-major.
template <class P>
std::size_t scope_end(Cache<P> heads, Scope scope, std::size_t begin) {
  if (scope == Scope::cache) return heads.size();
  std::size_t end = begin + 1;
  while (scope == Scope::layer && end < heads.size() && heads[end].id.layer == heads[begin].id.layer) ++end;
  return end;
}

/// What a head is granted whose tokens lose a competition.
enum class Safeguard : std::uint8_t {
  /// The rule of AdaKV's authors: round((1 - floor) * won + int(floor * equal share)); the sum may be exceeded a little.
  interpolate,
  /// The rule of kvpress: the head's best max(1, int(floor * budget)) tokens stay outside the competition; the sum is exact.
  minimum,
};

constexpr auto words_of(Safeguard) {
  return words(word("interpolate", Safeguard::interpolate), word("minimum", Safeguard::minimum));
}

/// Tokens of several heads compete for the slots that the heads have together: the heads of a layer (AdaKV), or of the whole
/// cache (KVzip). A head with scattered attention wins more slots than one that looks at few tokens. Slots that are Protected
/// stay outside. Of equal scores the older token wins, then the lower head's; NaN loses.
class Competition {
 public:
  /// `floor` in [0, 1]: the share of a head's budget that is not up for competition.
  explicit Competition(double floor = 0, Safeguard safeguard = Safeguard::interpolate)
      : floor_(floor), safeguard_(safeguard) {}

  /// One more head, with what its policy said in HeadView::scores.
  void enter(const HeadView& head, std::size_t budget) { enter(head.scores, head.positions, budget); }
  /// One more head, with the scores of its slots, their positions, and the slots that it would have without a competition.
  void enter(std::span<const float> scores, std::span<const Position> positions, std::size_t budget) {
    const auto number = static_cast<std::uint32_t>(heads_.size());
    const std::size_t before = entrants_.size();
    for (std::size_t slot = 0; slot < scores.size(); ++slot)
      if (scores[slot] != Protected) entrants_.push_back({scores[slot], positions[slot], number});
    Share share{.budget = budget, .fixed = scores.size() - (entrants_.size() - before)};
    if (safeguard_ == Safeguard::minimum) reserve(before, share);
    share.equal = budget - std::min(budget, share.fixed);
    heads_.push_back(share);
    held_ += scores.size();
    allowed_ += std::min(budget, MostTokens);  // so that the sum of endless budgets does not overflow
  }

  /// Writes what each head is granted, in the order in which they entered. Where all of them together hold no more than they
  /// may, nobody has to give, however uneven the heads are.
  void share(std::span<std::size_t> budgets) {
    if (held_ <= allowed_) {
      std::vector<std::size_t> slots(heads_.size());
      for (std::size_t h = 0; h < heads_.size(); ++h) slots[h] = heads_[h].fixed;
      for (const Entrant& entrant : entrants_) ++slots[entrant.head];
      for (std::size_t h = 0; h < heads_.size(); ++h) budgets[h] = std::max(heads_[h].budget, slots[h]);
      return;
    }
    std::size_t places = 0;
    for (const Share& share : heads_) places += share.equal;
    places = std::min(places, entrants_.size());
    if (places < entrants_.size())
      std::nth_element(entrants_.begin(), entrants_.begin() + static_cast<std::ptrdiff_t>(places), entrants_.end());
    for (std::size_t i = 0; i < places; ++i) ++heads_[entrants_[i].head].won;
    for (std::size_t h = 0; h < heads_.size(); ++h) budgets[h] = granted(heads_[h]);
  }

 private:
  struct Entrant {
    float score;
    Position position;
    std::uint32_t head;

    /// The order of Plan::top within a head, extended over heads.
    bool beats(const Entrant& other) const {
      if (std::isnan(score) != std::isnan(other.score)) return std::isnan(other.score);
      if (!std::isnan(score) && score != other.score) return score > other.score;
      return position != other.position ? position < other.position : head < other.head;
    }
    friend bool operator<(const Entrant& a, const Entrant& b) { return a.beats(b); }
  };
  struct Share {
    std::size_t budget = 0;  ///< what the head would have without a competition
    std::size_t fixed = 0;   ///< slots outside the competition: protected, or the safeguard's minimum
    std::size_t equal = 0;   ///< what the budget leaves beyond those
    std::size_t won = 0;
  };

  /// Takes the head's best entrants, which begin at `first`, out of the competition until the minimum, of which protected
  /// slots are part, is reached.
  void reserve(std::size_t first, Share& share) {
    const std::size_t minimum =
        std::max<std::size_t>(1, static_cast<std::size_t>(double(std::min(share.budget, MostTokens)) * floor_));
    const std::size_t taken = std::min(entrants_.size() - first, minimum - std::min(minimum, share.fixed));
    const auto begin = entrants_.begin() + static_cast<std::ptrdiff_t>(first),
               end = begin + static_cast<std::ptrdiff_t>(taken);
    std::nth_element(begin, end, entrants_.end());
    entrants_.erase(begin, end);
    share.fixed += taken;
  }

  std::size_t granted(const Share& share) const {
    if (safeguard_ == Safeguard::minimum) return share.fixed + share.won;
    if (share.budget <= share.fixed) return share.fixed;
    const double floor = std::floor(floor_ * double(share.equal));
    return share.fixed + static_cast<std::size_t>(std::nearbyint(double(share.won) * (1 - floor_) + floor));
  }

  double floor_;
  Safeguard safeguard_;
  std::vector<Share> heads_;
  std::vector<Entrant> entrants_;
  std::size_t held_ = 0, allowed_ = 0;
};

/// Shares out the budgets of heads whose policy has scored them: the tokens of each scope compete for the slots of its heads.
template <class P>
void compete(Cache<P> heads, Scope over, std::span<std::size_t> budgets) {
  if (over == Scope::head) return;
  for (std::size_t begin = 0, end = 0; begin < heads.size(); begin = end) {
    end = scope_end<P>(heads, over, begin);
    Competition competition;
    for (std::size_t h = begin; h < end; ++h) competition.enter(heads[h], budgets[h]);
    competition.share(budgets.subspan(begin, end - begin));
  }
}

}  // namespace kvc::inline KVC_ABI
