#include "passkey.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <utility>

#include "json.hpp"
#include "kvc/error.hpp"

namespace evaluation {
namespace {

constexpr std::size_t Depths = 8;
/// Keys that the model of examples/demo.sh finds again without compression, or most of them.
constexpr const char* Keys[MostNeedles] = {"magic number", "postal code",  "phone number", "account number",
                                           "house number", "lucky number", "bank code",    "pass key"};

void append(std::vector<int>& ids, std::span<const int> more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

PasskeyWords words_for(const engine::Tokenizer& tokenizer, std::uint32_t number, const std::string& key) {
  return {tokenizer.encode(fmt::format(" The {} is {}. ", key, number)),
          tokenizer.encode(fmt::format("\n\nWhat is the {0}? The {0} is ", key)),
          tokenizer.encode(fmt::format("{}", number))};
}

Question question_of(const Json& entry) {
  Question question{whole_numbers(entry.at("question_ids")), whole_numbers(entry.at("answer_ids")), std::nullopt};
  if (entry.contains("depth") && !entry.at("depth").is_null()) question.depth = entry.at("depth").get<double>();
  return question;
}

std::vector<Sample> samples_of(const Json& file) {
  std::vector<Sample> samples;
  for (const Json& entry : file.is_object() ? file.at("samples") : file) {
    Sample sample{whole_numbers(entry.at("context_ids")), {}};
    if (entry.contains("questions"))
      for (const Json& question : entry.at("questions")) sample.questions.push_back(question_of(question));
    else
      sample.questions.push_back(question_of(entry));
    samples.push_back(std::move(sample));
  }
  return samples;
}

bool is_whole(const Sample& sample) {
  const auto asks = [](const Question& question) { return !question.ids.empty() && !question.answer.empty(); };
  return !sample.context.empty() && !sample.questions.empty() && std::ranges::all_of(sample.questions, asks);
}

}  // namespace

PasskeyWords passkey_words(const engine::Tokenizer& tokenizer, std::uint32_t number) {
  return words_for(tokenizer, number, "pass key");
}

PasskeyWords passkey_words(const engine::Tokenizer& tokenizer, std::uint32_t number, std::size_t which) {
  return words_for(tokenizer, number, Keys[which]);
}

Sample hide_passkeys(std::span<const int> hay, std::vector<Needle> needles, std::size_t context_tokens) {
  std::size_t hidden = 0;
  for (const Needle& needle : needles) hidden += needle.words.needle.size();
  if (hidden >= context_tokens || hay.size() < context_tokens - hidden)
    kvc::fail(kvc::ErrorCode::invalid_argument,
              fmt::format("a passkey sample of {} tokens cannot be made: what is hidden in it has {} tokens, the text "
                          "around it {}",
                          context_tokens, hidden, hay.size()));
  hay = hay.first(context_tokens - hidden);
  std::ranges::stable_sort(needles, {}, &Needle::depth);
  Sample sample;
  std::size_t done = 0;
  for (Needle& needle : needles) {
    const auto before = static_cast<std::size_t>(needle.depth * static_cast<double>(hay.size()));
    append(sample.context, hay.subspan(done, before - done));
    append(sample.context, needle.words.needle);
    done = before;
    sample.questions.push_back({std::move(needle.words.question), std::move(needle.words.answer), needle.depth});
  }
  append(sample.context, hay.subspan(done));
  return sample;
}

std::vector<Sample> make_samples(std::span<const int> text, const engine::Tokenizer& tokenizer,
                                 const PasskeyPlan& plan) {
  if (plan.count != 0 && text.size() < plan.context)
    kvc::fail(
        kvc::ErrorCode::invalid_argument,
        fmt::format("the text has {} tokens, but a passkey sample needs {}; use a longer text, a shorter --prompt, or "
                    "--passkey 0",
                    text.size(), plan.context));
  // The engine's numbers are the same everywhere; a distribution's would not be.
  std::mt19937_64 random(20240229);
  std::vector<Sample> samples;
  for (std::size_t i = 0; i < plan.count; ++i) {
    const std::size_t begin = random() % (text.size() - plan.context + 1);
    std::vector<Needle> needles;
    for (std::size_t n = 0; n < plan.needles; ++n) {
      const auto number = static_cast<std::uint32_t>(10000 + random() % 90000);
      const std::size_t depth = (i + n * Depths / plan.needles) % Depths;
      needles.push_back({plan.needles == 1 ? passkey_words(tokenizer, number) : passkey_words(tokenizer, number, n),
                         (static_cast<double>(depth) + 0.5) / Depths});
    }
    samples.push_back(hide_passkeys(text.subspan(begin), std::move(needles), plan.context));
  }
  return samples;
}

std::vector<Sample> read_samples(const std::string& path) {
  std::vector<Sample> samples = read_json(path, "--samples", samples_of);
  for (std::size_t i = 0; i < samples.size(); ++i)
    if (!is_whole(samples[i]))
      kvc::fail(kvc::ErrorCode::bad_file,
                fmt::format("{}: sample {} lacks a context, a question or an answer", path, i));
  if (samples.empty()) kvc::fail(kvc::ErrorCode::bad_file, fmt::format("{}: it has no samples", path));
  return samples;
}

}  // namespace evaluation
