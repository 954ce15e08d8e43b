#pragma once
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// Knorm (Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", arXiv 2406.11430):
/// once, after the prompt, the tokens whose keys have the lowest norm, which needs no attention at all. Authors' code:
/// alessiodevoto/l2compress. Like kvpress, and unlike the authors' example, the first two layers are not spared; a
/// Budget::table spares them. Nothing else is protected either.
struct Knorm {
  Budget budget = 1024;

  static constexpr PolicyName name{"knorm", "Keeps the tokens whose keys have the lowest norm."};
  static constexpr auto parameters() {
    return list(parameter("budget", &Knorm::budget, "Slots that a head keeps when a prompt ends."));
  }

  /// Minus the norm of the key; the rotary embedding does not change it.
  void score(const Head<Knorm>& head, std::span<float> scores) const {
    const ConstRows keys = head.keys();
    for (std::size_t slot = 0; slot < scores.size(); ++slot) scores[slot] = -norm(keys[slot]);
  }

  /// Throws Error if a head may hold nothing.
  void validate(const CacheShape& shape) const { budget.require(1, "Knorm: one slot", shape); }
};

}  // namespace kvc::inline KVC_ABI
