#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "engine/model.hpp"
#include "kvc/cache/core.hpp"

namespace evaluation {

/// A request to repeat one piece of a prompt, with the piece itself behind it, as tokens. Policies that want a probe see
/// what such a repetition attends to (KVzip, arXiv 2505.23416).
struct RepeatProbe {
  std::vector<int> ids;              ///< the tokens that are asked, behind the prompt
  kvc::Position begin = 0, end = 0;  ///< the piece: tokens [begin, end) of the prompt
};

/// Tokens of a piece, as in KVzip's own code and in kvpress.
inline constexpr std::size_t RepeatedPiece = 2048;

/// The probes of a prompt, one for every piece of `piece` tokens.
std::vector<RepeatProbe> repeat_probes(std::span<const int> prompt, const engine::Tokenizer& tokenizer,
                                       std::size_t piece = RepeatedPiece);

/// Whether a stage of a policy, or a policy inside one, wants to see probes.
bool wants_probe(const kvc::Stages& stages);

/// Throws kvc::Error (invalid_argument), naming the policy, if prompt and repetition are more than the model's context.
void check_repetition(const engine::Model& model, std::span<const int> prompt, const std::string& policy);

/// Asks the model to repeat a prompt that the caches have just got, with last_chunk = false. The attention is that of
/// caches[0]; all caches observe it, and nothing of it stays in them. The caller ends their prompts with compress(). Returns
/// the seconds that the model took, without what the other caches did.
double repeat_prompt(const engine::Model& model, std::span<kvc::CacheCore* const> caches, std::span<const int> prompt,
                     engine::Workspace& workspace);

}  // namespace evaluation
