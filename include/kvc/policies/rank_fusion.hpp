#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/policies/h2o.hpp"
#include "kvc/policies/kvzip.hpp"
#include "kvc/policy/competition.hpp"
#include "kvc/policy/policy.hpp"
#include "kvc/policy/stage.hpp"

namespace kvc::inline KVC_ABI {

/// Several policies rank the tokens, and their ranks become one, as search engines fuse their rankings: once, after the prompt,
/// the best tokens stay. A rank is the share of tokens that score no better, so scores of any scale can be fused, and the
/// maximum over the policies keeps what one of them finds and the others miss: a passkey, say, that KVzip sees and H2O does not.
/// No single paper of this field has it. Slots that a policy protects stay. `budget` counts, the policies' own do not, and they
/// evict nothing by themselves.
struct RankFusion {
  /// By default what a replay of the prompt attends to at most, and what the prompt itself attended to, per query.
  std::vector<Member> policies = {KVzip{}, H2O{.recent = 0, .normalize = true, .when = When::prompt_end}};
  Budget budget = 1024;
  /// Scope::head leaves each head its own budget. The policy waits for the last layer all the same.
  Scope over = Scope::cache;
  Reduce reduce = Reduce::max;

  static constexpr PolicyName name{"rank_fusion", "Keeps the tokens that one of several policies ranks highly."};
  static constexpr auto parameters() {
    return list(parameter("policies", &RankFusion::policies, "The policies that rank; their own budgets do not count."),
                parameter("budget", &RankFusion::budget, "Slots of a head, on average over the heads that compete."),
                parameter("over", &RankFusion::over, "Among which tokens ranks are taken and the best are chosen."),
                parameter("reduce", &RankFusion::reduce, "How a token's ranks become one number."));
  }
  std::span<const Member> members() const { return policies; }

  /// The fused ranks, in (0, 1] where they are maxima or means; what a policy protects is Protected. A score that is NaN ranks
  /// lowest; equal scores rank equally.
  void score_all(Cache<RankFusion> heads, ScoreSpans scores) const {
    for (const std::span<float> each : scores) std::ranges::fill(each, 0.0f);
    for (std::size_t policy = 0; policy < policies.size(); ++policy) fuse(policy, heads, scores);
    if (reduce == Reduce::mean)
      for (const std::span<float> each : scores)
        for (float& score : each) score /= static_cast<float>(policies.size());
  }
  void allocate_all(Cache<RankFusion> heads, std::span<std::size_t> budgets) const { compete(heads, over, budgets); }

  /// Throws Error without policies, for one that does not score or turns positions, and for what one refuses with this budget.
  void validate(const CacheShape& shape) const {
    budget.require(1, "RankFusion: one slot", shape);
    if (policies.empty()) fail(ErrorCode::invalid_argument, "RankFusion: it needs policies that rank");
    for (const Member& policy : policies)
      require_scoring("RankFusion: each of its policies", policy, Scope::cache, budget, shape);
  }

 private:
  /// Adds the ranks by one policy to `fused`.
  void fuse(std::size_t policy, Cache<RankFusion> heads, ScoreSpans fused) const {
    std::size_t slots = 0;
    for (const std::span<float> each : fused) slots += each.size();
    std::vector<float> scores(slots);
    std::vector<AnyHead> own;
    std::vector<std::span<float>> spans;
    for (std::size_t h = 0, begin = 0; h < heads.size(); begin += fused[h++].size()) {
      own.push_back(heads[h].member(policy));
      spans.push_back(std::span(scores).subspan(begin, fused[h].size()));
    }
    policies[policy].score(own, spans);
    for (float& score : scores) score = std::isnan(score) ? -Protected : score;

    std::vector<float> ascending;
    for (std::size_t begin = 0, end = 0; begin < heads.size(); begin = end) {
      end = scope_end<RankFusion>(heads, over, begin);
      ascending.clear();
      for (std::size_t h = begin; h < end; ++h) ascending.insert(ascending.end(), spans[h].begin(), spans[h].end());
      std::sort(ascending.begin(), ascending.end());
      for (std::size_t h = begin; h < end; ++h) add_ranks(spans[h], ascending, fused[h]);
    }
  }
  /// A rank is the share of the scores in `ascending` that are no better.
  void add_ranks(std::span<const float> scores, std::span<const float> ascending, std::span<float> fused) const {
    for (std::size_t slot = 0; slot < scores.size(); ++slot) {
      const auto beaten = std::upper_bound(ascending.begin(), ascending.end(), scores[slot]) - ascending.begin();
      const float share = static_cast<float>(double(beaten) / double(ascending.size())),
                  rank = scores[slot] == Protected ? Protected : share;
      fused[slot] = reduce == Reduce::max ? std::max(fused[slot], rank) : fused[slot] + rank;
    }
  }
};

}  // namespace kvc::inline KVC_ABI
