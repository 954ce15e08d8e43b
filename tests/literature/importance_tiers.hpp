#pragma once
#include "kvc/policy/policy.hpp"

namespace literature {
using namespace kvc;

/// Two precisions in one head, the idea of MiKV (Yang et al., "No Token Left Behind: Reliable KV Cache Compression via
/// Importance-Aware Mixed Precision Quantization", arXiv 2402.18096): no token goes, but those that the prompt attended
/// to little are held in few bits. Importance is attention received per query that saw the token.
struct ImportanceTiers {
  double important = 0.2;
  unsigned bits = 2, important_bits = 8;
  std::size_t group = 32, recent = 32;

  static constexpr PolicyName name{"importance_tiers", "Holds tokens that received little attention in fewer bits."};
  static constexpr auto parameters() {
    return list(parameter("important", &ImportanceTiers::important, "The share of the tokens in more bits."),
                parameter("bits", &ImportanceTiers::bits, "Of the other tokens: 2, 3, 4 or 8."),
                parameter("important_bits", &ImportanceTiers::important_bits, "Of the important ones."),
                parameter("group", &ImportanceTiers::group, "So many neighbouring channels share a scale."),
                parameter("recent", &ImportanceTiers::recent, "So many newest tokens stay dense."));
  }

  struct Slot {
    float mass = 0;
  };
  Needs needs() const { return {.prompt = Feed::group_sums}; }
  void observe(Head<ImportanceTiers>& head, const Observation& seen) const {
    add_columns(head.slots, &Slot::mass, seen.attention);
  }
  void evict(Head<ImportanceTiers>& head, Plan& plan) const {
    if (!head.acts || head.size() == 0) return;
    const std::span<float> scores = plan.scratch(head.size());
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      scores[slot] = head.slots[slot].mass / static_cast<float>(head.positions.back() + 1 - head.positions[slot]);
    Plan best(head);
    best.top(scores, static_cast<std::size_t>(important * double(head.size())));
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      if (best.kept(slot)) plan.precision(slot, 1);
  }
  Streams quantize(HeadId, const CacheShape&) const {
    const Stream stream{.format = format(bits), .recent = recent, .classes = {format(important_bits)}};
    return {.key = stream, .value = stream};
  }
  void validate(const CacheShape& shape) const {
    require_share("ImportanceTiers: important", important);
    for (const unsigned each : {bits, important_bits})
      for (const std::size_t dim : {shape.head_dim, shape.values_dim()}) format(each).validate(dim);
  }

 private:
  GroupQuant format(unsigned each) const { return {.bits = each, .axis = Axis::token, .group = group}; }
};

}  // namespace literature
