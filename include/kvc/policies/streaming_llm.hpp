#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvc/policy/budget.hpp"
#include "kvc/policy/parameters.hpp"
#include "kvc/policy/verbs.hpp"

namespace kvc::inline KVC_ABI {

/// StreamingLLM (Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453): the first
/// tokens and a window of the newest ones. Authors' code: mit-han-lab/streaming-llm, streaming_llm/kv_cache.py
/// (`evict`, `evict_for_space`). budget = sinks + recent: their class default 4 + 512 is `.budget = 516`, Table 1 of
/// the paper has our 4 + 1020. Differs from them by default: tokens keep their original positions (as in kvpress); the
/// authors always place them by slot, which `.positions = Positions::in_cache` restores. Their chat demo makes room
/// before a turn instead of evicting after every pass: `.when = When::make_room`.
struct StreamingLLM {
  /// Evict after every pass, as the perplexity script does, or only when the engine announces tokens, as the chat demo
  /// does. An announcement is heeded either way.
  enum class When : std::uint8_t { every_pass, make_room };
  friend constexpr auto words_of(When) {
    return words(word("every_pass", When::every_pass), word("make_room", When::make_room));
  }

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
                  "It evicts after every pass, or only when the engine announces tokens by make_room()."));
  }

  /// Keeps the sinks and the newest budget - sinks slots; a prompt sees all of itself first. Before `incoming` tokens
  /// the window is that much shorter, at worst only the sinks stay. A fractional budget below the sinks keeps the
  /// sinks.
  void evict(Head<StreamingLLM>& head, Plan& plan) const {
    const bool room = head.event == Event::make_room;
    const bool passed = head.event == Event::prompt_end || head.event == Event::decode;
    if (!room && !(passed && when == When::every_pass)) return;
    const std::size_t coming = room ? head.incoming : 0;
    if (head.size() <= head.budget && coming <= head.budget - head.size()) return;
    const std::size_t recent = head.budget - std::min(head.budget, sinks);
    plan.first(sinks);
    plan.last(recent - std::min(recent, coming));
  }

  /// Throws Error if the budget cannot hold the sinks, or in-cache positions lack the model's rotary table.
  void validate(const CacheShape& shape) const {
    require_between("StreamingLLM: sinks", sinks, 0);
    budget.require(std::max<std::size_t>(1, sinks), "StreamingLLM: sinks", shape);
    if (positions == Positions::in_cache && shape.rotary.inv_freq.empty())
      fail(ErrorCode::invalid_argument,
           "StreamingLLM: positions = in_cache needs the model's table in CacheShape::rotary");
  }
};

}  // namespace kvc::inline KVC_ABI
