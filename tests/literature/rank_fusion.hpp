#pragma once
#include "kvc/policy/competition.hpp"
#include "kvc/policy/policy.hpp"
#include "kvc/policy/stage.hpp"

namespace literature {
using namespace kvc;

/// Rank fusion, as retrieval engines fuse their rankings and no single paper of this field: each of several policies
/// ranks the tokens of the whole cache; a token counts as much as its best rank, and the best tokens of the cache stay.
/// H2O normalized, KVzip and KVzip with sums are the mixture that was tried first.
struct RankFusion {
  std::vector<Member> policies = {};
  Budget budget = 1024;

  static constexpr PolicyName name{"rank_fusion", "Keeps the tokens that one of several policies ranks highly."};
  static constexpr auto parameters() {
    return list(parameter("policies", &RankFusion::policies, "The policies that rank; their own budgets do not count."),
                parameter("budget", &RankFusion::budget, "Slots of a head, on average over the cache."));
  }
  std::span<const Member> members() const { return policies; }

  void score_all(Cache<RankFusion> heads, ScoreSpans scores) const {
    std::size_t slots = 0;
    for (const std::span<float> each : scores) slots += each.size();
    std::vector<float> ranked(slots), best(slots);
    for (std::size_t i = 0; i < policies.size(); ++i) {
      rank(i, heads, ranked);
      for (std::size_t slot = 0; slot < slots; ++slot) best[slot] = std::max(best[slot], ranked[slot]);
    }
    auto from = best.begin();
    for (const std::span<float> each : scores) {
      std::copy_n(from, each.size(), each.begin());
      from += static_cast<std::ptrdiff_t>(each.size());
    }
  }
  void allocate_all(Cache<RankFusion> heads, std::span<std::size_t> budgets) const {
    Competition competition;
    for (std::size_t h = 0; h < heads.size(); ++h) competition.enter(heads[h], budgets[h]);
    competition.share(budgets);
  }
  void validate(const CacheShape& shape) const {
    if (policies.empty()) fail(ErrorCode::invalid_argument, "RankFusion: it needs policies that rank");
    for (const Member& policy : policies)
      if (!policy || !policy.stage().verbs().scores())
        fail(ErrorCode::incompatible, "RankFusion: its policies must be policies that score");
    for (const Member& policy : policies) policy.with_budget(budget).stage().validate(shape);
  }

 private:
  /// The ranks by one policy, the worst 1 / slots and the best 1; what it protects stays Protected.
  void rank(std::size_t policy, Cache<RankFusion> heads, std::span<float> ranks) const {
    std::vector<AnyHead> own;
    std::vector<std::span<float>> spans;
    std::vector<float> scores(ranks.size());
    std::size_t begin = 0;
    for (const Head<RankFusion>& head : heads) {
      own.push_back(head.member(policy));
      spans.push_back(std::span(scores).subspan(begin, head.size()));
      begin += head.size();
    }
    policies[policy].score(own, spans);
    std::vector<std::uint32_t> order(ranks.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint32_t>(i);
    std::ranges::stable_sort(order, [&](std::uint32_t a, std::uint32_t b) { return scores[a] < scores[b]; });
    for (std::size_t i = 0; i < order.size(); ++i)
      ranks[order[i]] = scores[order[i]] == Protected ? Protected : float(i + 1) / float(order.size());
  }
};

}  // namespace literature
