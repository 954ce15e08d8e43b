#pragma once
#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/policies/snapkv.hpp"
#include "kvc/policy/policy.hpp"
#include "kvc/policy/stage.hpp"

namespace kvc::inline KVC_ABI {

/// How much values weigh in a layer's output, a fact about a model that its engine knows: it has the output projection.
struct ValueNorms {
  /// Writes norms [tokens] for values [tokens, value_dim] of a KV head: for CriticalKV the mean, over the query heads of its
  /// group, of the sum of magnitudes of value · Wo. It is called from any thread of the cache's executor.
  std::function<void(HeadId head, ConstRows values, std::span<float> norms)> of;

  static constexpr const char* Expected = "nothing in a text: the program gives it";
  static std::optional<ValueNorms> parse(std::string_view) { return std::nullopt; }
  std::string to_string() const { return ""; }
};

/// CriticalKV (Feng et al., "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective", arXiv
/// 2502.03805): once, after the prompt, half of the budget by the scores of another policy, and the rest by those scores times
/// the length that a token's value has in the layer's output. As kvpress's CriticalKVPress over any press. The output
/// projection is the engine's: `.norms` asks for it, and `AnyPolicy::set_default(ValueNorms{…})` gives it to a policy that was
/// chosen by name. Without it the sum of magnitudes of the value itself counts, as if the projection were none. Slots that the
/// base protects stay, and are part of the first half. `budget` counts, the base's own does not.
struct CriticalKV {
  Member base = SnapKV{};
  Budget budget = 320;
  double first_stage = 0.5;
  /// In the units of the base's scores. SnapKV's are sums over the queries of its window, kvpress's are means: this is the 1e-4
  /// of kvpress for a window of 64.
  double epsilon = 0.0064;
  std::optional<ValueNorms> norms = std::nullopt;

  static constexpr PolicyName name{"criticalkv", "Weighs the scores of base by what values add to the output."};
  static constexpr auto parameters() {
    return list(
        parameter("base", &CriticalKV::base, "The policy whose scores decide; its own budget does not count."),
        parameter("budget", &CriticalKV::budget, "Slots that a head keeps when a prompt ends."),
        parameter("first_stage", &CriticalKV::first_stage,
                  "The share of the budget that the scores of base fill alone."),
        parameter("epsilon", &CriticalKV::epsilon, "Added to the scores of base before they are weighed."),
        parameter("norms", &CriticalKV::norms, "How long values are in the layer's output; unset, their own length."));
  }
  std::span<const Member> members() const { return {&base, 1}; }

  void score_layer(Layer<CriticalKV> heads, ScoreSpans scores) const {
    std::vector<AnyHead> same;
    for (const Head<CriticalKV>& head : heads) same.push_back(head.member(0));
    base.score(same, scores);
    for (std::size_t h = 0; h < heads.size(); ++h) weigh(heads[h], scores[h]);
  }

  /// Throws Error for a first stage that is no share, for a base that does not score heads or layers, or turns positions, and
  /// for what the base refuses with this budget.
  void validate(const CacheShape& shape) const {
    require_share("CriticalKV: first_stage", first_stage);
    budget.require(1, "CriticalKV: one slot", shape);
    require_scoring("CriticalKV: base", base, Scope::layer, budget, shape);
  }

 private:
  void weigh(const Head<CriticalKV>& head, std::span<float> scores) const {
    if (head.size() <= head.budget) return;
    Plan first(head);
    first.drop_all();
    keep_best(first, scores, static_cast<std::size_t>(double(head.budget) * first_stage));
    const ConstRows values = head.values();
    std::vector<float> lengths(scores.size());
    if (norms && norms->of)
      norms->of(head.id, values, lengths);
    else
      for (std::size_t slot = 0; slot < lengths.size(); ++slot)
        for (const float x : values[slot]) lengths[slot] += std::abs(x);
    for (std::size_t slot = 0; slot < scores.size(); ++slot)
      if (!first.kept(slot))
        scores[slot] = (scores[slot] + static_cast<float>(epsilon)) * lengths[slot];
      else if (scores[slot] != Protected)
        scores[slot] = std::numeric_limits<float>::max();
  }
};

}  // namespace kvc::inline KVC_ABI
