#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/tokenizer.hpp"

namespace evaluation {

/// A text in which a number is hidden, the question for it, and the answer, as tokens. The policy acts after the
/// context, so it does not know the question.
struct Sample {
  std::vector<int> context, question, answer;
};

/// The tokens of a sample's sentences.
struct PasskeyWords {
  std::vector<int> needle, question, answer;
};

/// The words for one number, e.g. 75800.
PasskeyWords passkey_words(const engine::Tokenizer& tokenizer, std::uint32_t number);

/// A sample of `context_tokens` tokens: the beginning of `hay`, with the needle put in after the share `depth` of it.
/// Throws kvc::Error (invalid_argument) if the needle does not fit or the hay is too short.
Sample hide_passkey(std::span<const int> hay, PasskeyWords words, std::size_t context_tokens, double depth);

/// `count` samples of `context_tokens` tokens from a text, the same for the same text; needles lie at the depths 1/16,
/// 3/16, … 15/16, over and over.
std::vector<Sample> make_samples(std::span<const int> text, const engine::Tokenizer& tokenizer, std::size_t count,
                                 std::size_t context_tokens);

/// Samples as literal ids: a JSON object with a list `samples` (or just the list) of objects with `context_ids`,
/// `question_ids` and `answer_ids`. Throws kvc::Error (bad_file), also if there is none.
std::vector<Sample> read_samples(const std::string& path);

}  // namespace evaluation
