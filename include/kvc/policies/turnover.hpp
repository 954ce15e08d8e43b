#pragma once
#include <algorithm>
#include <cstddef>
#include <span>
#include <tuple>

#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// Endless generation behind a policy that acts on prompts: every head goes on to hold as many tokens as that policy left it. The
/// tokens generated since are kept until there are `batch` of them; then the head drops as many, those that the newest queries
/// attended to least. What a token received counts less with every batch, by `decay`, so that a head forgets what the text has
/// left behind. It is H2O (arXiv 2306.14048) with a memory that fades, in batches, for heads of uneven size: dropping many tokens
/// at a time lets new ones show what they are good for, and finds whole blocks of codes to free. Where no policy has evicted
/// anything, a head may hold `budget` tokens. Nothing is evicted at the end of a prompt.
struct Turnover {
  Budget budget = 1024;
  std::size_t batch = 128;
  std::size_t recent = 32;
  double decay = 0.5;
  static constexpr When when = When::every_pass;

  static constexpr auto parameters() {
    return list(parameter("budget", &Turnover::budget, "Slots of a head where no policy before it has evicted any."),
                parameter("batch", &Turnover::batch, "It evicts when a head has so many generated tokens beyond that."),
                parameter("recent", &Turnover::recent, "So many newest tokens always stay, up to half of the head."),
                parameter("decay", &Turnover::decay, "What attention still counts after a batch."));
  }

  /// Attention that the token received from generated ones.
  struct Slot {
    float mass = 0;
  };
  struct State {
    std::size_t allowed = 0;  ///< slots that the head may hold; 0: no prompt has ended yet
    std::size_t waiting = 0;  ///< tokens generated since it last evicted
    auto fields() { return std::tie(allowed, waiting); }
  };
  Needs needs() const { return {.decode = Feed::group_sums}; }

  void observe(Head<Turnover>& head, const Observation& seen) const {
    if (seen.event != Event::decode) return;
    add_columns(head.slots, &Slot::mass, seen.attention);
    head.state->waiting += seen.queries_count;
  }
  void evict(Head<Turnover>& head, Plan& plan) const {
    State& state = *head.state;
    if (head.event == Event::prompt_end) {
      state.allowed = head.size() < head.seen ? head.size() : std::max(head.size(), head.budget);
      return;
    }
    if (!head.acts) return;
    const std::size_t allowed = state.allowed != 0 ? state.allowed : head.budget;
    if (state.waiting < batch || head.size() < std::min(allowed, MostTokens) + batch) return;
    const std::span<float> scores = plan.scratch(head.size());
    for (std::size_t slot = 0; slot < scores.size(); ++slot) scores[slot] = head.slots[slot].mass;
    scores[0] = Protected;
    protect_last(scores, std::min(recent, allowed / 2));
    keep_best(plan, scores, allowed);
    for (Slot& slot : head.slots) slot.mass *= static_cast<float>(decay);
    state.waiting = 0;
  }
  void validate(const CacheShape& shape) const {
    require_between("Turnover: batch", batch, 1);
    require_between("Turnover: recent", recent, 0);
    require_share("Turnover: decay", decay);
    budget.require(1, "Turnover: one slot", shape);
  }
};

}  // namespace kvc::inline KVC_ABI
