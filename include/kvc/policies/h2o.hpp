#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kvc/policy/budget.hpp"
#include "kvc/policy/scoring.hpp"
#include "kvc/policy/verbs.hpp"

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
  /// Evict after every pass, or once after the prompt.
  enum class When : std::uint8_t { always, prompt_end };

  Budget budget = 1024;                              ///< heavy + recent slots
  std::optional<std::size_t> recent = std::nullopt;  ///< newest slots that always stay; none: half of the budget
  /// Over the group's masses. Sum and mean rank alike; max is of the sums of each pass, so it depends on a prompt's
  /// chunks.
  Reduce reduce = Reduce::sum;
  bool normalize = false;  ///< rank by mass / number of queries that saw the token, which stops favouring old tokens
  When when = When::always;
  Positions positions = Positions::original;

  /// Attention that the token has received, from itself too.
  struct Slot {
    float mass = 0;
  };
  Needs needs() const {
    const Feed feed = reduce == Reduce::sum ? Feed::group_sums : Feed::sums;
    return {.prompt = feed, .decode = when == When::always ? feed : Feed::none};
  }

  void observe(Head<H2O>& head, const Observation& seen) const {
    if (seen.attention.count == 0) return;
    if (seen.attention.count == 1) {  // the core has added up the group
      const float* mass = seen.attention.data;
      std::size_t slot = 0;
      for (; slot + Strip <= head.size(); slot += Strip) {
        float received[Strip];
        std::copy_n(mass + slot, Strip, received);
        for (std::size_t i = 0; i < Strip; ++i) head.slots[slot + i].mass += received[i];
      }
      for (; slot < head.size(); ++slot) head.slots[slot].mass += mass[slot];
      return;
    }
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      head.slots[slot].mass += reduce_column(seen.attention, slot, reduce);
  }

  /// The mass, or its mean over the queries since the token came; the newest tokens are Protected.
  void score(const Head<H2O>& head, std::span<float> scores) const {
    const Position next = head.positions.empty() ? 0 : head.positions.back() + 1;
    for (std::size_t slot = 0; slot < scores.size(); ++slot) scores[slot] = head.slots[slot].mass;
    if (normalize)
      for (std::size_t slot = 0; slot < scores.size(); ++slot)
        scores[slot] /= static_cast<float>(next - head.positions[slot]);
    std::fill(scores.begin() + static_cast<std::ptrdiff_t>(older(head)), scores.end(), Protected);
  }

  /// A fractional budget below `recent` keeps `recent` slots.
  void evict(Head<H2O>& head, Plan& plan) const {
    const bool acts = head.event == Event::prompt_end || (head.event == Event::decode && when == When::always);
    if (!acts || head.size() <= head.budget) return;
    if (head.size() == head.budget + 1 &&
        !normalize) {  // a decode step: one slot goes, and no scores need be written down
      if (older(head) == 0) return;
      const std::size_t loser = lowest(older(head), [&](std::size_t slot) { return head.slots[slot].mass; });
      if (head.slots[loser].mass != Protected) plan.drop(loser);
      return;
    }
    const std::span<float> scores = plan.scratch(head.size());
    score(head, scores);
    keep_best(plan, scores, head.budget);
  }

  /// Throws Error if the budget cannot hold the recent tokens, or in-cache positions lack the model's rotary table.
  void validate(const CacheShape& shape) const {
    budget.require(std::max<std::size_t>(1, recent.value_or(0)), "H2O: recent", shape);
    if (positions == Positions::in_cache && shape.rotary.inv_freq.empty())
      fail(ErrorCode::invalid_argument, "H2O: positions = in_cache needs the model's table in CacheShape::rotary");
  }

 private:
  /// Slots that are not among the newest, which always stay.
  std::size_t older(const Head<H2O>& head) const {
    return head.size() - std::min(recent.value_or(head.budget / 2), head.size());
  }
};

}  // namespace kvc
