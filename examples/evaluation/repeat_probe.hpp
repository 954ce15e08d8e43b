#pragma once
#include <span>
#include <vector>

#include "engine/tokenizer.hpp"
#include "kvc/shape.hpp"

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

}  // namespace evaluation
