#pragma once
#include "kvc/policy/competition.hpp"
#include "kvc/policy/policy.hpp"

namespace literature {
using namespace kvc;

/// KVzip (Kim et al., "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction", arXiv 2505.23416): how
/// much the repetition of the context attends to each token, at most; the tokens of all heads of all layers compete.
/// The engine keeps the prompt open, probes, and compresses (CacheCore::probe). As kvpress's KVzipPress.
struct KVzip {
  Budget budget = 1024;
  std::size_t sinks = 4;
  Reduce reduce = Reduce::max;

  static constexpr PolicyName name{"kvzip", "Keeps the tokens to which the repetition of the prompt attends."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &KVzip::budget, "Slots of a head, on average over the cache."),
        parameter("sinks", &KVzip::sinks, "So many first tokens always stay."),
        parameter("reduce", &KVzip::reduce, "How the attention of all queries becomes one number, max or sum."));
  }

  struct Slot {
    float attention = 0;
  };
  Needs needs() const { return {.probe = reduce == Reduce::max ? Feed::maxima : Feed::group_sums}; }
  void observe(Head<KVzip>& head, const Observation& seen) const {
    if (seen.event != Event::probe) return;
    for (std::size_t slot = 0; slot < head.size(); ++slot) {
      if (head.positions[slot] < seen.probe_begin || head.positions[slot] >= seen.probe_end) continue;
      float& known = head.slots[slot].attention;
      const float found = reduce_column(seen.attention, slot, reduce);
      known = reduce == Reduce::max ? std::max(known, found) : known + found;
    }
  }
  void score(const Head<KVzip>& head, std::span<float> scores) const {
    for (std::size_t slot = 0; slot < scores.size(); ++slot) scores[slot] = head.slots[slot].attention;
    protect_first(scores, sinks);
  }
  void allocate_all(Cache<KVzip> heads, std::span<std::size_t> budgets) const {
    Competition competition;
    for (std::size_t h = 0; h < heads.size(); ++h) competition.enter(heads[h], budgets[h]);
    competition.share(budgets);
  }
  void validate(const CacheShape& shape) const {
    require_between("KVzip: sinks", sinks, 0);
    budget.require(sinks + 1, "KVzip: sinks + 1", shape);
  }
};

}  // namespace literature
