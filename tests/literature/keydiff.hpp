#pragma once
#include "kvc/policy/policy.hpp"

namespace literature {
using namespace kvc;

/// KeyDiff (Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
/// Resource-Constrained Environments", arXiv 2504.15364): once, after the prompt, the tokens whose keys are least
/// similar to the mean direction of the head's keys. As kvpress's KeyDiffPress.
struct KeyDiff {
  Budget budget = 1024;

  static constexpr PolicyName name{"keydiff", "Keeps the tokens whose keys differ most from the mean direction."};
  static constexpr auto parameters() {
    return list(parameter("budget", &KeyDiff::budget, "Slots that a head keeps when a prompt ends."));
  }

  /// Minus the cosine with the sum of all keys' directions.
  void score(const Head<KeyDiff>& head, std::span<float> scores) const {
    const ConstRows keys = head.keys();
    std::vector<float> anchor(keys.dim);
    for (std::size_t slot = 0; slot < keys.count; ++slot) {
      const float length = std::max(norm(keys[slot]), 1e-12f);
      for (std::size_t c = 0; c < keys.dim; ++c) anchor[c] += keys[slot][c] / length;
    }
    const std::span<const float> along = head.products({anchor.data(), 1, keys.dim})[0];
    for (std::size_t slot = 0; slot < keys.count; ++slot)
      scores[slot] = -along[slot] / std::max(norm(keys[slot]), 1e-12f);
  }
  void validate(const CacheShape& shape) const { budget.require(1, "KeyDiff: one slot", shape); }
};

}  // namespace literature
