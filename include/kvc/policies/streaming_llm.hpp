#pragma once
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// StreamingLLM (Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453): the first
/// tokens and a window of the newest ones. Authors' code: mit-han-lab/streaming-llm, streaming_llm/kv_cache.py
/// (`evict`, `evict_for_space`). budget = sinks + recent: their class default 4 + 512 is `.budget = 516`, Table 1 of
/// the paper has our 4 + 1020. Differs from them by default: tokens keep their original positions (as in kvpress); the
/// authors always place them by slot, which `.positions = Positions::in_cache` restores. Their chat demo makes room
/// before a turn instead of evicting after every pass: `.when = When::make_room`. An announcement is heeded either way.
struct StreamingLLM {
  Budget budget = 1024;
  std::size_t sinks = 4;
  Positions positions = Positions::original;
  When when = When::every_pass;
  static constexpr EqualSlots equal_slots = EqualSlots::cache;

  static constexpr PolicyName name{"streaming_llm", "Keeps the first tokens and a window of the newest ones."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &StreamingLLM::budget, "Slots of a head: the sinks and the newest tokens together."),
        parameter("sinks", &StreamingLLM::sinks, "So many first tokens always stay."),
        alias(
            "recent", +[](StreamingLLM& policy, std::size_t recent) { policy.budget = policy.sinks + recent; },
            "So many newest tokens stay; the budget is then sinks + recent.")
            .instead_of("budget"),
        parameter("positions", &StreamingLLM::positions, "Where the kept tokens stand for the rotary embedding."),
        parameter("when", &StreamingLLM::when,
                  "After which events it evicts; tokens that the engine announces always make it evict."));
  }

  /// Keeps the sinks and the newest budget - sinks slots; a prompt sees all of itself first. Before `incoming` tokens
  /// the window is that much shorter, at worst only the sinks stay. A fractional budget below the sinks keeps the
  /// sinks.
  void evict(Head<StreamingLLM>& head, Plan& plan) const {
    if (!head.acts && head.event != Event::make_room) return;
    if (head.size() <= head.budget && head.incoming <= head.budget - head.size()) return;
    const std::size_t recent = head.budget - std::min(head.budget, sinks);
    plan.first(sinks);
    plan.last(recent - std::min(recent, head.incoming));
  }

  /// Throws Error if the budget cannot hold the sinks.
  void validate(const CacheShape& shape) const {
    require_between("StreamingLLM: sinks", sinks, 0);
    budget.require(std::max<std::size_t>(1, sinks), "StreamingLLM: sinks", shape);
  }
};

}  // namespace kvc::inline KVC_ABI
