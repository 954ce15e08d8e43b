#pragma once
#include "kvc/policies/foresight.hpp"
#include "kvc/policies/kvzip.hpp"
#include "kvc/policies/pursuit.hpp"
#include "kvc/policies/rank_fusion.hpp"
#include "kvc/policies/refit.hpp"
#include "kvc/policy/pipeline.hpp"

namespace kvc::inline KVC_ABI {

/// The smallest cache of the library, as one word: of every token the better of its ranks by KVzip and by Pursuit in the whole
/// cache, and Refit over those that stay, in codes of three bits. By default it takes a twenty-fifth of fp16. The engine leaves the
/// prompt open (prefill with last = false), shows it the text once more (CacheCore::probe), and compresses (CacheCore::compress);
/// docs/engines.md has the loop. An engine that cannot do so sets `.replay = false`, or KVzip, which is inside, refuses to act.
/// Queries are moved behind the prompt by CacheShape::rotary; where that is empty, as for models without a rotary embedding,
/// they stay as they are. Needs Eigen, and about twenty seconds of a compiler where it is written as a type and not as a text.
struct Compact {
  Budget budget = Budget::fraction(0.155);
  unsigned bits = 3;
  /// Without the repetition, Foresight takes KVzip's place, and the fit has the prompt's own queries alone. Text is continued
  /// about as well; what only a later question asks for is mostly lost.
  bool replay = true;

  static constexpr PolicyName name{
      "compact", "Keeps the tokens that matter most in the cache, in three bits, fitted to what was lost."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &Compact::budget, "Slots of a head, on average over the cache; by default keep=0.155."),
        parameter("bits", &Compact::bits, "Of keys and values, 2, 3, 4 or 8; 16: neither is quantized."),
        parameter("replay", &Compact::replay, "Whether the prompt is repeated in a probe before it is compressed."));
  }

  Stages stages() const {
    const Member seen = replay ? Member(KVzip{.sinks = 1}) : Member(Foresight{.sinks = 1});
    return stages_of(Refit{.policy = RankFusion{.policies = {seen, Pursuit{}}}, .budget = budget, .bits = bits});
  }
};

}  // namespace kvc::inline KVC_ABI
