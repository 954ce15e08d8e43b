#pragma once
#include <cstddef>
#include <optional>

#include "kvc/policies/foresight.hpp"
#include "kvc/policies/kvzip.hpp"
#include "kvc/policies/pursuit.hpp"
#include "kvc/policies/rank_fusion.hpp"
#include "kvc/policies/refit.hpp"
#include "kvc/policies/turnover.hpp"
#include "kvc/policy/pipeline.hpp"

namespace kvc::inline KVC_ABI {

/// The smallest cache of the library, as one word: of every token the better of its ranks by KVzip and by Pursuit in the whole
/// cache, and Refit over those that stay, in codes of three bits. By default it takes a twenty-fifth of fp16. The engine leaves the
/// prompt open (prefill with last = false), shows it the text once more (CacheCore::probe), and compresses (CacheCore::compress);
/// docs/engines.md has the loop. An engine that cannot do so sets `.replay = false`, or KVzip, which is inside, refuses to act.
/// Queries are moved behind the prompt by CacheShape::rotary; where that is empty, as for models without a rotary embedding,
/// they stay as they are. Tokens generated afterwards are sealed as they age. With a budget in slots the cache stays that large,
/// for ever: Turnover drops tokens in batches. With a share of the tokens they all stay.
/// Needs Eigen, and about twenty seconds of a compiler where it is written as a type and not as a text.
struct Compact {
  Budget budget = Budget::fraction(0.155);
  unsigned bits = 3;
  /// Without the repetition, Foresight takes KVzip's place, and the fit has the prompt's own queries alone. Text is continued
  /// about as well; what only a later question asks for is mostly lost.
  bool replay = true;
  /// Unset: 128 where the budget is in slots. 0: generated tokens are never evicted.
  std::optional<std::size_t> batch = std::nullopt;

  static constexpr PolicyName name{
      "compact", "Keeps the tokens that matter most in the cache, in three bits, fitted to what was lost."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &Compact::budget, "Slots of a head, on average over the cache; by default keep=0.155."),
        parameter("bits", &Compact::bits, "Of keys and values, 2, 3, 4 or 8; 16: neither is quantized."),
        parameter("replay", &Compact::replay, "Whether the prompt is repeated in a probe before it is compressed."),
        parameter(
            "batch", &Compact::batch,
            "So many generated tokens come before as many are evicted; 0: none are. Unset, it is 128 for a budget "
            "in slots, and 0 for a share."));
  }

  /// Throws Error for parameters that the policies inside could not work with, in the words of this one.
  Stages stages() const {
    if (!budget.is_table() && !budget.is_pyramid())  // those depend on the model
      budget.require(Pursuit{}.sinks + 1, "Compact: one slot more than the sinks", {});
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8 && bits != 16)
      fail(ErrorCode::invalid_argument, {"Compact: bits must be 2, 3, 4, 8 or 16, got ", bits});
    if (budget.is_fraction() && batch.value_or(0) != 0)
      fail(ErrorCode::invalid_argument,
           {"Compact: batch (", *batch, ") needs a budget in slots: a share of the tokens grows with every token"});
    const Member seen = replay ? Member(KVzip{.sinks = 1}) : Member(Foresight{.sinks = 1});
    Stages all = stages_of(Refit{.policy = RankFusion{.policies = {seen, Pursuit{}}}, .budget = budget, .bits = bits});
    const std::size_t tokens = batch.value_or(budget.is_fraction() ? 0 : 128);
    if (tokens != 0) all.push_back(stages_of(Turnover{.budget = budget, .batch = tokens}).front());
    return all;
  }
};

}  // namespace kvc::inline KVC_ABI
