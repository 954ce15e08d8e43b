#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/tokenizer.hpp"

namespace evaluation {

/// A question about a context, and the answer that stands in it, as tokens.
struct Question {
  std::vector<int> ids, answer;
  std::optional<double> depth;  ///< where in the context the answer stands, from 0 to 1; none: not known
};

/// A text in which numbers are hidden, and a question for each of them. The policy acts after the context, so it does not
/// know the questions. Each is asked of the same compressed context, as if there were no others.
struct Sample {
  std::vector<int> context;
  std::vector<Question> questions;
};

/// The tokens of the sentences for one number.
struct PasskeyWords {
  std::vector<int> needle, question, answer;
};

/// How many numbers can be hidden in one context.
inline constexpr std::size_t MostNeedles = 8;

/// The words for a number, e.g. 75800, that is the only one in its context.
PasskeyWords passkey_words(const engine::Tokenizer& tokenizer, std::uint32_t number);
/// The words for number `which` < MostNeedles of several, which tell it from the others.
PasskeyWords passkey_words(const engine::Tokenizer& tokenizer, std::uint32_t number, std::size_t which);

/// Words and the share of the text before them.
struct Needle {
  PasskeyWords words;
  double depth = 0;
};

/// A sample of `context_tokens` tokens: the beginning of `hay`, with the needles put in at their depths. Throws kvc::Error
/// (invalid_argument) if they do not fit or the hay is too short.
Sample hide_passkeys(std::span<const int> hay, std::vector<Needle> needles, std::size_t context_tokens);

/// What samples are made of a text.
struct PasskeyPlan {
  std::size_t count = 8;    ///< contexts
  std::size_t needles = 1;  ///< numbers that are hidden in each, at most MostNeedles
  std::size_t context = 1024;
};

/// Samples, the same for the same text. The depths 1/16, 3/16, … 15/16 take turns, so that a multiple of eight samples
/// has as many needles at each of them.
std::vector<Sample> make_samples(std::span<const int> text, const engine::Tokenizer& tokenizer,
                                 const PasskeyPlan& plan);

/// Samples as literal ids: a JSON object with a list `samples` (or just the list) of objects with `context_ids` and either
/// `question_ids`, `answer_ids` and perhaps `depth`, or a list `questions` of objects with these. Throws kvc::Error
/// (bad_file), also if there is none.
std::vector<Sample> read_samples(const std::string& path);

}  // namespace evaluation
