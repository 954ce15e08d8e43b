#include "passkey.hpp"

#include <fmt/format.h>

#include <random>
#include <utility>

#include "json.hpp"
#include "kvc/error.hpp"

namespace evaluation {
namespace {

constexpr std::size_t Depths = 8;

void append(std::vector<int>& ids, std::span<const int> more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

std::vector<Sample> samples_of(const Json& file) {
  std::vector<Sample> samples;
  for (const Json& entry : file.is_object() ? file.at("samples") : file)
    samples.push_back({whole_numbers(entry.at("context_ids")), whole_numbers(entry.at("question_ids")),
                       whole_numbers(entry.at("answer_ids"))});
  return samples;
}

}  // namespace

PasskeyWords passkey_words(const engine::Tokenizer& tokenizer, std::uint32_t number) {
  return {tokenizer.encode(fmt::format(" The pass key is {}. ", number)),
          tokenizer.encode("\n\nWhat is the pass key? The pass key is "), tokenizer.encode(fmt::format("{}", number))};
}

Sample hide_passkey(std::span<const int> hay, PasskeyWords words, std::size_t context_tokens, double depth) {
  if (words.needle.size() >= context_tokens || hay.size() < context_tokens - words.needle.size())
    kvc::fail(
        kvc::ErrorCode::invalid_argument,
        fmt::format("a passkey sample of {} tokens cannot be made: its sentence has {} tokens, the text around it {}",
                    context_tokens, words.needle.size(), hay.size()));
  hay = hay.first(context_tokens - words.needle.size());
  const auto before = static_cast<std::size_t>(depth * static_cast<double>(hay.size()));
  Sample sample{{}, std::move(words.question), std::move(words.answer)};
  append(sample.context, hay.first(before));
  append(sample.context, words.needle);
  append(sample.context, hay.subspan(before));
  return sample;
}

std::vector<Sample> make_samples(std::span<const int> text, const engine::Tokenizer& tokenizer, std::size_t count,
                                 std::size_t context_tokens) {
  if (count != 0 && text.size() < context_tokens)
    kvc::fail(
        kvc::ErrorCode::invalid_argument,
        fmt::format("the text has {} tokens, but a passkey sample needs {}; use a longer text, a shorter --prompt, or "
                    "--passkey 0",
                    text.size(), context_tokens));
  // The engine's numbers are the same everywhere; a distribution's would not be.
  std::mt19937_64 random(20240229);
  std::vector<Sample> samples;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t begin = random() % (text.size() - context_tokens + 1);
    const auto number = static_cast<std::uint32_t>(10000 + random() % 90000);
    const double depth = (static_cast<double>(i % Depths) + 0.5) / Depths;
    samples.push_back(hide_passkey(text.subspan(begin), passkey_words(tokenizer, number), context_tokens, depth));
  }
  return samples;
}

std::vector<Sample> read_samples(const std::string& path) {
  std::vector<Sample> samples = read_json(path, "--samples", samples_of);
  for (std::size_t i = 0; i < samples.size(); ++i)
    if (samples[i].context.empty() || samples[i].question.empty() || samples[i].answer.empty())
      kvc::fail(kvc::ErrorCode::bad_file,
                fmt::format("{}: sample {} lacks a context, a question or an answer", path, i));
  if (samples.empty()) kvc::fail(kvc::ErrorCode::bad_file, fmt::format("{}: it has no samples", path));
  return samples;
}

}  // namespace evaluation
