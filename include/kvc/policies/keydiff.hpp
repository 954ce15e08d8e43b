#pragma once
#include <vector>

#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// KeyDiff (Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
/// Resource-Constrained Environments", arXiv 2504.15364): the tokens whose keys are least similar to the mean direction of the
/// head's keys; no attention and no queries are needed. This is kvpress's KeyDiffPress, once after the prompt. The paper evicts
/// after every block of a prompt, so that the whole prompt is never held: `.when = When::every_chunk`, with a prompt in parts
/// of that size. No token is protected.
struct KeyDiff {
  Budget budget = 1024;
  When when = When::prompt_end;

  static constexpr PolicyName name{"keydiff", "Keeps the tokens whose keys differ most from the mean direction."};
  static constexpr auto parameters() {
    return list(parameter("budget", &KeyDiff::budget, "Slots that a head may hold."),
                parameter("when", &KeyDiff::when, "After which events it evicts."));
  }

  /// Minus the cosine with the sum of all keys' directions.
  void score(const Head<KeyDiff>& head, std::span<float> scores) const {
    constexpr float Shortest = 1e-12f;  // a key of length 0 has the cosine 0
    const ConstRows keys = head.keys();
    std::vector<float> anchor(keys.dim);
    for (std::size_t slot = 0; slot < keys.count; ++slot) {
      scores[slot] = std::max(norm(keys[slot]), Shortest);
      for (std::size_t c = 0; c < keys.dim; ++c) anchor[c] += keys[slot][c] / scores[slot];
    }
    const std::span<const float> along = head.products({anchor.data(), 1, keys.dim})[0];
    const float length = std::max(norm(anchor), Shortest);
    for (std::size_t slot = 0; slot < keys.count; ++slot) scores[slot] = -along[slot] / scores[slot] / length;
  }

  /// Throws Error if a head may hold nothing.
  void validate(const CacheShape& shape) const { budget.require(1, "KeyDiff: one slot", shape); }
};

}  // namespace kvc::inline KVC_ABI
