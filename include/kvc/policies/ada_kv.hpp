#pragma once
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/policies/snapkv.hpp"
#include "kvc/policy/budget.hpp"
#include "kvc/policy/competition.hpp"
#include "kvc/policy/parameters.hpp"
#include "kvc/policy/stage.hpp"

namespace kvc::inline KVC_ABI {

/// AdaKV (Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM
/// Inference", arXiv 2407.11550): once, after the prompt, the heads of a layer share their budgets: tokens compete across heads
/// by the scores of another policy, so a head with scattered attention gets more slots than one that looks at few tokens.
/// Authors' code: FFY0/AdaKV; theirs is `AdaKV{.base = SnapKV{.window = 32, .kernel = 7, .pooling = Pooling::max}, .budget =
/// 512}`. Slots that the base protects (score Protected) stay outside the competition. Of equal scores the older token stays,
/// then the lower head's; NaN loses. `budget` counts, the base's own does not, and the base evicts nothing by itself.
struct AdaKV {
  Member base = SnapKV{};
  Budget budget = 320;
  /// 0.2 is widely used and kvpress's; the README of the authors has 0.5.
  double floor_alpha = 0.2;
  Safeguard safeguard = Safeguard::interpolate;

  static constexpr PolicyName name{"ada_kv",
                                   "Lets the heads of a layer compete for their slots by the scores of base."};
  static constexpr auto parameters() {
    return list(
        parameter("base", &AdaKV::base, "The policy whose scores decide; its own budget does not count."),
        parameter("budget", &AdaKV::budget, "Slots of a head, on average over the heads of a layer."),
        parameter("floor_alpha", &AdaKV::floor_alpha, "The share of the budget that heads keep without a competition."),
        parameter("safeguard", &AdaKV::safeguard,
                  "What a head keeps that loses: by the rule of the authors, or by that of kvpress (minimum)."));
  }

  std::span<const Member> members() const { return {&base, 1}; }

  /// The base's scores.
  void score_layer(Layer<AdaKV> heads, ScoreSpans scores) const {
    std::vector<AnyHead> same;
    for (const Head<AdaKV>& head : heads) same.push_back(head.member(0));
    base.score(same, scores);
  }
  void allocate(Layer<AdaKV> heads, std::span<std::size_t> budgets) const {
    Competition competition(floor_alpha, safeguard);
    for (std::size_t h = 0; h < heads.size(); ++h) competition.enter(heads[h], budgets[h]);
    competition.share(budgets);
  }

  /// Throws Error for a floor outside [0, 1], for a base that does not score or turns positions, and for what the base refuses
  /// with this budget.
  void validate(const CacheShape& shape) const {
    require_share("AdaKV: floor_alpha", floor_alpha);
    budget.require(1, "AdaKV: one slot", shape);
    require_scoring("AdaKV: base", base, Scope::layer, budget, shape);
  }
};

}  // namespace kvc::inline KVC_ABI
