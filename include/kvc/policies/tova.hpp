#pragma once
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// TOVA (Oren et al., "Transformers are Multi-State RNNs", arXiv 2401.06104): the tokens to which the newest query of the layer
/// attends most, on average over all query heads of the LAYER, so that all its heads keep the same tokens; once a prompt is
/// complete, and after every generated token. Authors' code: schwartz-lab-NLP/TOVA, src/tova_cache.py. Differs: the prompt's
/// last token is Protected, as in kvpress's TOVAPress, which acts on prompts only (`.when = When::prompt_end`); a generated
/// token is not, as in the authors' code. Nothing else is protected, the first tokens included.
struct TOVA {
  Budget budget = 1024;
  When when = When::every_pass;
  static constexpr EqualSlots equal_slots = EqualSlots::layer;

  static constexpr PolicyName name{"tova", "Keeps the tokens to which the newest query of the layer attends."};
  static constexpr auto parameters() {
    return list(parameter("budget", &TOVA::budget, "Slots that a head may hold."),
                parameter("when", &TOVA::when, "After which events it evicts."));
  }

  /// Attention from the newest generated token.
  struct Slot {
    float weight = 0;
  };
  Needs needs() const {
    return {.decode = acts_after(when, Event::decode) ? Feed::rows : Feed::none, .query_window = 1};
  }
  void observe(Head<TOVA>& head, const Observation& seen) const {
    const std::size_t rows = seen.attention.count;
    if (rows == 0) return;
    const ConstRows newest = seen.attention.subrows(rows - head.group(), head.group());
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      head.slots[slot].weight = reduce_column(newest, slot, Reduce::sum);
  }

  /// Sums over the query heads of the layer, of those heads that still hold the token. Throws Error(missing_feed) where a prompt's queries are gone.
  void score_layer(Layer<TOVA> heads, ScoreSpans scores) const {
    const bool prompt = heads[0].event != Event::decode;
    for (std::size_t h = 0; h < heads.size(); ++h) {
      if (heads[h].size() == 0) continue;
      const ConstRows votes = prompt ? window_votes(heads[h], 1) : ConstRows();
      for (std::size_t slot = 0; slot < heads[h].size(); ++slot)
        scores[h][slot] = prompt ? reduce_column(votes, slot, Reduce::sum) : heads[h].slots[slot].weight;
    }
    share_scores<TOVA>(heads, scores);
    for (const std::span<float> each : scores)
      if (prompt) protect_last(each, 1);
  }

  /// Throws Error if a head may hold nothing, or if the policy should act when no query has come.
  void validate(const CacheShape& shape) const {
    if (when == When::make_room)
      fail(ErrorCode::invalid_argument, "TOVA: when must not be make_room, after which there is no newest query");
    budget.require(1, "TOVA: one slot", shape);
  }
};

}  // namespace kvc::inline KVC_ABI
