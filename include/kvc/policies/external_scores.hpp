#pragma once
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// Evicts the tokens to which the engine gave the lowest scores (Tokens::scores, one per token and KV head): for
/// trained scorers such as Locret (Huang et al., arXiv 2410.01805), whose small network runs in the engine. A token's
/// score never changes. Locret itself, huangyuxiang03/Locret: `.budget = 6000, .recent = 2500, .when =
/// When::every_chunk, .positions = Positions::in_cache`; its stabilizers, our `recent`, count in every chunk but the last, here also in
/// the last. Scores must be finite: an infinite one would read as Protected, so the cache refuses it.
struct ExternalScores {
  Budget budget = 1024;
  std::size_t recent = 0;
  When when = When::prompt_end;
  Positions positions = Positions::original;

  static constexpr PolicyName name{"external_scores", "Keeps the tokens that the engine scores highest."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &ExternalScores::budget, "Slots that a head may hold."),
        parameter("recent", &ExternalScores::recent, "So many newest slots always stay."),
        parameter("when", &ExternalScores::when, "After which events it evicts."),
        parameter("positions", &ExternalScores::positions, "Where the kept tokens stand for the rotary embedding."));
  }

  /// What the engine said.
  struct Slot {
    float score = 0;
  };
  Needs needs() const { return {.external_scores = true}; }

  void observe(Head<ExternalScores>& head, const Observation& seen) const {
    const std::size_t count = std::min(seen.scores.size(), head.size() - std::min(head.size(), seen.first_new));
    for (std::size_t i = 0; i < count; ++i) head.slots[seen.first_new + i].score = seen.scores[i];
  }

  /// The engine's scores; the newest tokens are Protected.
  void score(const Head<ExternalScores>& head, std::span<float> scores) const {
    for (std::size_t slot = 0; slot < scores.size(); ++slot) scores[slot] = head.slots[slot].score;
    protect_last(scores, recent);
  }

  /// Throws Error if the budget cannot hold the recent tokens; a fraction that is too small keeps them all the same.
  void validate(const CacheShape& shape) const {
    require_between("ExternalScores: recent", recent, 0);
    budget.require(std::max<std::size_t>(1, recent), "ExternalScores: recent", shape);
  }
};

}  // namespace kvc::inline KVC_ABI
