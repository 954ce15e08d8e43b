#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvc/policy/budget.hpp"
#include "kvc/policy/parameters.hpp"
#include "kvc/policy/scoring.hpp"
#include "kvc/policy/verbs.hpp"

namespace kvc::inline KVC_ABI {

/// What AdaKV grants a head whose scores lose.
enum class Safeguard : std::uint8_t {
  /// The authors': round((1 - floor_alpha) * won + int(floor_alpha * equal share)); a layer may exceed its sum a
  /// little.
  interpolate,
  /// kvpress: its best max(1, int(floor_alpha * budget)) tokens, and the layer's sum is exact.
  minimum,
};
constexpr auto words_of(Safeguard) {
  return words(word("interpolate", Safeguard::interpolate), word("minimum", Safeguard::minimum));
}

/// AdaKV (Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM
/// Inference", arXiv 2407.11550): once, after the prompt, the heads of a layer share their budgets: tokens compete
/// across heads by Base's scores, so a head with scattered attention gets more slots than one that looks at few tokens.
/// Authors' code: FFY0/AdaKV; theirs is `AdaKV<SnapKV>{.base = {.window = 32, .kernel = 7, .pooling = Pooling::max},
/// .budget = 512}`. Slots that Base protects (score Protected) stay outside the competition. Equal scores: the older
/// token stays, then the lower head's; NaN loses. `budget` counts, Base's own does not. Base's work outside the
/// prompt's end is not done.
template <class Base>
struct AdaKV {
  static_assert(Scores<Base>, "AdaKV needs a policy that scores");

  Base base = {};
  Budget budget = base.budget;
  /// 0.2 is widely used and kvpress's; the README of the authors has 0.5.
  double floor_alpha = 0.2;
  Safeguard safeguard = Safeguard::interpolate;

  static constexpr PolicyName name{"ada_kv",
                                   "Lets the heads of a layer compete for their slots by the scores of base."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &AdaKV::budget, "Slots of a head, on average over the heads of a layer."),
        parameter("floor_alpha", &AdaKV::floor_alpha, "The share of the budget that heads keep without a competition."),
        parameter("safeguard", &AdaKV::safeguard,
                  "What a head keeps that loses: by the rule of the authors, or by that of kvpress (minimum)."));
  }

  using Slot = kvc::Slot<Base>;
  using State = kvc::State<Base>;

  Needs needs() const {
    if constexpr (HasNeeds<Base>) return base.needs();
    return {};
  }
  void observe(Head<AdaKV>& head, const Observation& seen) const {
    if constexpr (Observes<Base>) {
      Head<Base> same = as<Base>(head);
      base.observe(same, seen);
    }
  }
  void score(const Head<AdaKV>& head, std::span<float> scores) const {
    Head<Base> same = as<Base>(head);
    // What Base protects must not depend on what this head has won.
    same.budget = budget.at(head.id, head.seen, *head.shape);
    base.score(same, scores);
  }

  void allocate(Layer<AdaKV> heads, std::span<std::size_t> budgets) const {
    if (heads.empty() || heads[0].event != Event::prompt_end) return;
    std::size_t held = 0, allowed = 0;
    for (std::size_t h = 0; h < heads.size(); ++h) {
      held += heads[h].size();
      // What the cache holds bounds what it may hold, so that the sum of endless budgets does not overflow.
      allowed += std::min(budgets[h], MostTokens);
    }
    if (held <= allowed) {  // nobody has to give, however uneven the heads are
      for (std::size_t h = 0; h < heads.size(); ++h) budgets[h] = std::max(budgets[h], heads[h].size());
      return;
    }
    Competition competition = enter(heads, budgets);
    competition.run();
    for (std::size_t h = 0; h < heads.size(); ++h) budgets[h] = granted(competition.heads[h], budgets[h]);
  }

  void evict(Head<AdaKV>& head, Plan& plan) const {
    if (head.event != Event::prompt_end || head.size() <= head.budget) return;
    std::vector<float> scores(head.size());
    score(head, scores);
    keep_best(plan, scores, head.budget);
  }

  /// Throws Error for a floor outside [0, 1], or what Base refuses with this budget.
  void validate(const CacheShape& shape) const {
    require_share("AdaKV: floor_alpha", floor_alpha);
    budget.require(1, "AdaKV: one slot", shape);
    if constexpr (requires { base.positions; })
      if (base.positions == Positions::in_cache)
        fail(ErrorCode::incompatible, "AdaKV: its base must use original positions");
    if constexpr (Validates<Base>) {
      Base same = base;
      same.budget = budget;
      same.validate(shape);
    }
  }

 private:
  struct Entrant {
    float score;
    Position position;
    std::uint32_t head;

    /// Plan::top's order within a head, extended over heads.
    bool beats(const Entrant& other) const {
      if (std::isnan(score) != std::isnan(other.score)) return std::isnan(other.score);
      if (!std::isnan(score) && score != other.score) return score > other.score;
      return position != other.position ? position < other.position : head < other.head;
    }
    friend bool operator<(const Entrant& a, const Entrant& b) { return a.beats(b); }
  };
  struct Share {
    std::size_t fixed = 0;  ///< slots outside the competition: protected by Base, or the safeguard's minimum
    std::size_t equal = 0;  ///< slots the head would have had beyond those
    std::size_t won = 0;
  };
  struct Competition {
    std::vector<Share> heads;
    std::vector<Entrant> entrants;

    void run() {
      std::size_t places = 0;
      for (const Share& share : heads) places += share.equal;
      places = std::min(places, entrants.size());
      if (places < entrants.size())
        std::nth_element(entrants.begin(), entrants.begin() + static_cast<std::ptrdiff_t>(places), entrants.end());
      for (std::size_t i = 0; i < places; ++i) ++heads[entrants[i].head].won;
    }
  };

  Competition enter(Layer<AdaKV> heads, std::span<const std::size_t> budgets) const {
    Competition competition;
    std::vector<float> scores;
    std::vector<Entrant> own;
    for (std::size_t h = 0; h < heads.size(); ++h) {
      const Head<AdaKV>& head = heads[h];
      scores.resize(head.size());
      score(head, scores);
      own.clear();
      for (std::size_t slot = 0; slot < head.size(); ++slot)
        if (scores[slot] != Protected)
          own.push_back({scores[slot], head.positions[slot], static_cast<std::uint32_t>(h)});
      Share share{.fixed = head.size() - own.size()};
      if (safeguard == Safeguard::minimum) reserve(own, budgets[h], share);
      share.equal = budgets[h] - std::min(budgets[h], share.fixed);
      competition.heads.push_back(share);
      competition.entrants.insert(competition.entrants.end(), own.begin(), own.end());
    }
    return competition;
  }

  /// Takes the head's best out of the competition until the minimum, of which protected slots are part, is reached.
  void reserve(std::vector<Entrant>& own, std::size_t head_budget, Share& share) const {
    const std::size_t minimum = std::max<std::size_t>(1, static_cast<std::size_t>(double(head_budget) * floor_alpha));
    const std::size_t taken = std::min(own.size(), minimum - std::min(minimum, share.fixed));
    const auto end = own.begin() + static_cast<std::ptrdiff_t>(taken);
    std::nth_element(own.begin(), end, own.end());
    own.erase(own.begin(), end);
    share.fixed += taken;
  }

  std::size_t granted(const Share& share, std::size_t head_budget) const {
    if (safeguard == Safeguard::minimum) return share.fixed + share.won;
    if (head_budget <= share.fixed) return share.fixed;
    const double floor = std::floor(floor_alpha * double(share.equal));
    return share.fixed + static_cast<std::size_t>(std::nearbyint(double(share.won) * (1 - floor_alpha) + floor));
  }
};

template <class Base>
AdaKV(Base) -> AdaKV<Base>;

}  // namespace kvc::inline KVC_ABI
