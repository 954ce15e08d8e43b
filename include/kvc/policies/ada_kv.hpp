#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvc/policy/budget.hpp"
#include "kvc/policy/competition.hpp"
#include "kvc/policy/parameters.hpp"
#include "kvc/policy/scoring.hpp"
#include "kvc/policy/verbs.hpp"

namespace kvc::inline KVC_ABI {

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
    Competition competition(floor_alpha, safeguard);
    for (std::size_t h = 0; h < heads.size(); ++h) competition.enter(heads[h], budgets[h]);
    competition.share(budgets);
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
};

template <class Base>
AdaKV(Base) -> AdaKV<Base>;

}  // namespace kvc::inline KVC_ABI
