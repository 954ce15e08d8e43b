#pragma once
#include "kvc/policy/competition.hpp"
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// KVzip (Kim et al., "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction", arXiv 2505.23416): once, after
/// the prompt, the tokens to which the model attends while it repeats the prompt; the tokens of all heads of all layers compete
/// for the slots that they have together. Authors' code: snu-mllab/KVzip; this is kvpress's KVzipPress, whose four sinks they
/// do not have. The engine's part: it leaves the prompt open (prefill with last = false), asks for the repetition by
/// CacheCore::probe, in as many calls as it likes, each naming the positions that it asks about, and ends the prompt by
/// CacheCore::compress. evaluation/repeat_probe.hpp of the examples does that with the words of kvpress. The repetition costs
/// about what the prompt cost.
struct KVzip {
  Budget budget = 1024;
  std::size_t sinks = 4;
  /// The authors' is the maximum. The sum ranks by how much a token is used altogether, which lets RankFusion find what the
  /// maximum misses.
  Reduce reduce = Reduce::max;
  /// Scope::layer is kvpress's `layerwise`.
  Scope over = Scope::cache;

  static constexpr PolicyName name{"kvzip", "Keeps the tokens to which the repetition of the prompt attends."};
  static constexpr auto parameters() {
    return list(parameter("budget", &KVzip::budget, "Slots of a head, on average over the heads that compete."),
                parameter("sinks", &KVzip::sinks, "So many first tokens always stay."),
                parameter("reduce", &KVzip::reduce, "How the attention of all queries becomes one number."),
                parameter("over", &KVzip::over, "Among which tokens the best are chosen."));
  }

  /// What the repetition attended to, until the policy has acted: of the tokens that the head held at the last probe.
  struct PromptState {
    std::vector<Position> positions;
    std::vector<float> attention;
    std::size_t queries = 0;
    std::size_t bytes() const {
      return sizeof(PromptState) + positions.capacity() * sizeof(Position) + attention.capacity() * sizeof(float);
    }
    /// Of slots at ascending positions, what is known of each; of a token that was not there, 0.
    std::vector<float> of(std::span<const Position> slots) const {
      std::vector<float> known(slots.size());
      for (std::size_t slot = 0, i = 0; slot < slots.size(); ++slot) {
        while (i < positions.size() && positions[i] < slots[slot]) ++i;
        if (i < positions.size() && positions[i] == slots[slot]) known[slot] = attention[i];
      }
      return known;
    }
  };
  Needs needs() const { return {.probe = reduce == Reduce::max ? Feed::maxima : Feed::group_sums}; }

  void observe(Head<KVzip>& head, const Observation& seen) const {
    if (seen.event != Event::probe || head.prompt == nullptr || seen.attention.count == 0) return;
    const auto slots = head.positions.first(seen.first_new);
    std::vector<float> attention = head.prompt->of(slots);
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
      if (slots[slot] < seen.probe_begin || slots[slot] >= seen.probe_end) continue;
      const float found = reduce_column(seen.attention, slot, reduce);
      attention[slot] = reduce == Reduce::max ? std::max(attention[slot], found) : attention[slot] + found;
    }
    head.prompt->queries += seen.queries_count;
    head.prompt->attention = std::move(attention);
    head.prompt->positions.assign(slots.begin(), slots.end());
  }

  /// The maximum, sum or mean; the sinks are Protected. A token that no probe asked about has 0 and goes first. Throws
  /// Error(missing_feed) if there was no probe at all, unless the head has room for every token.
  void score(const Head<KVzip>& head, std::span<float> scores) const {
    std::ranges::fill(scores, 0.0f);
    if (head.prompt != nullptr && head.prompt->queries > 0) {
      const std::vector<float> attention = head.prompt->of(head.positions);
      const float share = reduce == Reduce::mean ? 1 / static_cast<float>(head.prompt->queries) : 1.0f;
      for (std::size_t slot = 0; slot < scores.size(); ++slot) scores[slot] = attention[slot] * share;
    } else if (head.size() > head.budget) {
      fail(ErrorCode::missing_feed,
           "KVzip: nothing is known of the repetition: leave the prompt open, call probe(), then compress()");
    }
    protect_first(scores, sinks);
  }
  void allocate_all(Cache<KVzip> heads, std::span<std::size_t> budgets) const { compete(heads, over, budgets); }

  /// Throws Error if a head may hold nothing beside the sinks.
  void validate(const CacheShape& shape) const {
    require_between("KVzip: sinks", sinks, 0);
    budget.require(sinks + 1, "KVzip: sinks + 1", shape);
  }
};

}  // namespace kvc::inline KVC_ABI
