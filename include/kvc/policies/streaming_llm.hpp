#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvc/policy/budget.hpp"
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

  Budget budget = 1024;   ///< sinks + recent tokens
  std::size_t sinks = 4;  ///< first tokens that always stay
  Positions positions = Positions::original;
  When when = When::every_pass;
  static constexpr bool equal_slots = true;

  /// Keeps the sinks and the newest budget - sinks slots; a prompt sees all of itself first. Before `incoming` tokens
  /// the window is that much shorter, at worst only the sinks stay. A fractional budget below the sinks keeps the
  /// sinks.
  void evict(Head<StreamingLLM>& head, Plan& plan) const {
    const bool room = head.event == Event::make_room;
    const bool passed = head.event == Event::prompt_end || head.event == Event::decode;
    if (!room && !(passed && when == When::every_pass)) return;
    const std::size_t coming = room ? head.incoming : 0;
    if (head.size() + coming <= head.budget) return;
    const std::size_t recent = head.budget - std::min(head.budget, sinks);
    plan.first(sinks);
    plan.last(recent - std::min(recent, coming));
  }

  /// Throws Error if the budget cannot hold the sinks, or in-cache positions lack the model's rotary table.
  void validate(const CacheShape& shape) const {
    budget.require(std::max<std::size_t>(1, sinks), "StreamingLLM: sinks", shape);
    if (positions == Positions::in_cache && shape.rotary.inv_freq.empty())
      fail(ErrorCode::invalid_argument,
           "StreamingLLM: positions = in_cache needs the model's table in CacheShape::rotary");
  }
};

}  // namespace kvc
