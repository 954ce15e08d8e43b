#pragma once
#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/policy/policy.hpp"
#include "kvc/policy/reference_rows.hpp"

namespace kvc::inline KVC_ABI {

/// Scores a token by the most attention that one of the reference queries pays it: those of the prompt, moved behind the prompt as if
/// they were asked next, and those of probes, if there are any (see ReferenceRows). It is what is left of KVzip's idea for an
/// engine that cannot repeat the prompt: it finds what the text itself would look at again, and not what only a question asks for.
struct Foresight {
  Budget budget = 1024;
  std::size_t sinks = 4;
  std::size_t rows = 512;

  static constexpr PolicyName name{"foresight",
                                   "Keeps the tokens to which the prompt's queries would attend from behind it."};
  static constexpr auto parameters() {
    return list(parameter("budget", &Foresight::budget, "Slots that a head keeps when a prompt ends."),
                parameter("sinks", &Foresight::sinks, "So many first tokens always stay."),
                parameter("rows", &Foresight::rows,
                          "About so many tokens' queries are looked at, of the prompt and of probes."));
  }

  struct PromptState {
    ProbeMemory probes;
    std::size_t bytes() const { return sizeof(PromptState) + probes.bytes(); }
  };
  Needs needs() const { return {.query_stride = 2, .query_most = 3 * rows}; }
  void observe(Head<Foresight>& head, const Observation& seen) const {
    if (head.prompt) head.prompt->probes.observe(head, seen);
  }

  void score(const Head<Foresight>& head, std::span<float> scores) const {
    std::ranges::fill(scores, 0.0f);
    const std::size_t kept = head.reference_queries().positions.size();
    if (head.prompt == nullptr || kept == 0) {
      if (head.size() > head.budget)
        fail(ErrorCode::missing_feed, "Foresight: no query of a prompt is kept; it acts at the end of a prompt only");
    } else {
      const ReferenceRows references(head, head.prompt->probes, std::max<std::size_t>(1, kept / rows));
      constexpr std::size_t AtOnce = 64;
      std::vector<float> memory(AtOnce * references.count());
      for (std::size_t begin = 0; begin < scores.size(); begin += AtOnce) {
        const std::size_t count = std::min(AtOnce, scores.size() - begin);
        const Rows<float> shares(memory.data(), count, references.count());
        references.shares(head.keys().subrows(begin, count), shares);
        for (std::size_t slot = 0; slot < count; ++slot)
          for (std::size_t row = 0; row < references.count(); ++row)
            scores[begin + slot] = std::max(scores[begin + slot], references.weights()[row] * shares[slot][row]);
      }
    }
    protect_first(scores, sinks);
  }

  void validate(const CacheShape& shape) const {
    require_between("Foresight: sinks", sinks, 0);
    require_between("Foresight: rows", rows, 1);
    budget.require(sinks + 1, "Foresight: sinks + 1", shape);
  }
};

}  // namespace kvc::inline KVC_ABI
