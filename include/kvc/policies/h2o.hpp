#pragma once
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// H2O (Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of LLMs", arXiv 2306.14048): the
/// tokens with the most accumulated attention, and the newest ones. Authors' code: FMInference/H2O,
/// h2o_hf/utils_real_drop/modify_llama.py. Eviction follows attention, so the prompt attends to all of itself and a
/// step to budget + 1 slots at most. Masses are carried on unchanged; a dropped token's is lost. Their budget is heavy
/// + recent (summarisation script: 1024 + 1024, class default: 4 + 512); ours is the sum, recent half of it as in the
/// paper's experiments. Their code has no GQA; the query heads of a group add up here. Position rolling
/// (`H2OLlamaAttention_streaming`) is `.positions = Positions::in_cache`. kvpress's ObservedAttention is `.recent = 0,
/// .normalize = true, .when = When::prompt_end`.
struct H2O {
  Budget budget = 1024;
  /// None is half of the budget, at least one. With 0 a new token has less mass than all others and goes at once, so the
  /// set would never change again: 0 is refused unless `normalize` or When::prompt_end makes it work.
  std::optional<std::size_t> recent = std::nullopt;
  /// Sum and mean rank alike. The maximum is over the sums of each pass, so it depends on how a prompt is cut.
  Reduce reduce = Reduce::sum;
  bool normalize = false;
  When when = When::every_pass;
  Positions positions = Positions::original;

  static constexpr PolicyName name{"h2o", "Keeps the tokens that received most attention so far, and the newest ones."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &H2O::budget, "Slots of a head: heavy and newest tokens together."),
        parameter("recent", &H2O::recent, "So many newest tokens always stay; unset, they are half of the budget."),
        parameter("reduce", &H2O::reduce, "How the attention of the query heads of a group becomes one number."),
        parameter("normalize", &H2O::normalize,
                  "It ranks by attention per query that saw the token, which does not favour old tokens."),
        parameter("when", &H2O::when, "After which events it evicts."),
        parameter("positions", &H2O::positions, "Where the kept tokens stand for the rotary embedding."));
  }

  /// Attention that the token has received, from itself too.
  struct Slot {
    float mass = 0;
  };
  Needs needs() const {
    const Feed feed = reduce == Reduce::sum ? Feed::group_sums : Feed::sums;
    return {.prompt = feed, .decode = acts_after(when, Event::decode) ? feed : Feed::none};
  }

  void observe(Head<H2O>& head, const Observation& seen) const {
    add_columns(head.slots, &Slot::mass, seen.attention, reduce);
  }

  /// The mass, or its mean over the queries since the token came; the newest tokens are Protected.
  void score(const Head<H2O>& head, std::span<float> scores) const {
    const Position next = head.positions.empty() ? 0 : head.positions.back() + 1;
    for (std::size_t slot = 0; slot < scores.size(); ++slot) scores[slot] = head.slots[slot].mass;
    if (normalize)
      for (std::size_t slot = 0; slot < scores.size(); ++slot)
        scores[slot] /= static_cast<float>(next - head.positions[slot]);
    protect_last(scores, recent.value_or(std::max<std::size_t>(1, head.budget / 2)));
  }

  /// Throws Error if the budget cannot hold the recent tokens, or if there are none where they are needed. A fraction that is
  /// too small keeps them all the same.
  void validate(const CacheShape& shape) const {
    require_between("H2O: recent", recent.value_or(1), 0);
    if (recent == std::size_t{0} && acts_after(when, Event::decode) && !normalize)
      fail(ErrorCode::invalid_argument,
           "H2O: recent = 0 would evict every new token at once; give recent, normalize or when = prompt_end");
    budget.require(std::max<std::size_t>(1, recent.value_or(0)), "H2O: recent", shape);
  }
};

}  // namespace kvc::inline KVC_ABI
