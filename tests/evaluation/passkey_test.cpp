#include "evaluation/passkey.hpp"

#include <numeric>

#include "catch_shim.hpp"
#include "engine/model_file.hpp"
#include "evaluation/json.hpp"
#include "kvc/error.hpp"
#include "support/temporary_file.hpp"

using namespace evaluation;

TEST_CASE("the needle lies after the share of the text around it that the depth says") {
  std::vector<int> hay(100);
  std::iota(hay.begin(), hay.end(), 0);
  const Sample sample = hide_passkey(hay, {{-1, -2}, {-3}, {-4}}, 10, 0.3);  // 8 tokens of text, 2.4 before
  CHECK(sample.context == std::vector<int>{0, 1, -1, -2, 2, 3, 4, 5, 6, 7});
  CHECK(sample.question == std::vector<int>{-3});
  CHECK(sample.answer == std::vector<int>{-4});
}

TEST_CASE("a needle longer than the context and a text shorter than it are refused") {
  const std::vector<int> hay(7, 0);
  CHECK_THROWS_AS(hide_passkey(hay, {{1, 2}, {3}, {4}}, 2, 0.5), kvc::Error);
  CHECK_THROWS_AS(hide_passkey(hay, {{1, 2}, {3}, {4}}, 10, 0.5), kvc::Error);
}

TEST_CASE("samples are read as literal ids") {
  const TemporaryFile file(R"({"samples": [{"context_ids": [1, 2], "question_ids": [3], "answer_ids": [4, 5]}]})");
  const auto samples = read_samples(file.path());
  REQUIRE(samples.size() == 1);
  CHECK(samples[0].context == std::vector<int>{1, 2});
  CHECK(samples[0].answer == std::vector<int>{4, 5});
}

TEST_CASE("a sample without an answer is refused") {
  const TemporaryFile file(R"([{"context_ids": [1, 2], "question_ids": [3], "answer_ids": []}])");
  CHECK_THROWS_AS(read_samples(file.path()), kvc::Error);
}

TEST_CASE("the sentences of a sample are the reference's, token by token", "[model]") {
  const engine::Tokenizer tokenizer(model_file());
  const Json reference_file = Json::parse(read_text(reference("retrieval_samples.json")));
  const auto& references = reference_file.at("samples");
  const auto samples = read_samples(reference("retrieval_samples.json"));
  REQUIRE(references.size() == samples.size());
  for (std::size_t i = 0; i < samples.size(); ++i) {
    PasskeyWords words = passkey_words(tokenizer, static_cast<std::uint32_t>(references[i].at("value").get<double>()));
    CHECK(words.question == samples[i].question);
    CHECK(words.answer == samples[i].answer);

    const auto begin =
        samples[i].context.begin() + static_cast<std::ptrdiff_t>(references[i].at("needle_start").get<double>());
    const auto end = begin + static_cast<std::ptrdiff_t>(words.needle.size());
    CHECK(std::vector<int>(begin, end) == words.needle);
    std::vector<int> hay(samples[i].context.begin(), begin);
    hay.insert(hay.end(), end, samples[i].context.end());
    CHECK(hide_passkey(hay, words, 1024, references[i].at("depth").get<double>()).context == samples[i].context);
  }
}

TEST_CASE("samples made from a text are the same every time and as long as asked", "[model]") {
  const engine::Tokenizer tokenizer(model_file());
  std::vector<int> text(5000);
  std::iota(text.begin(), text.end(), 0);
  const auto samples = make_samples(text, tokenizer, 9, 300), again = make_samples(text, tokenizer, 9, 300);
  REQUIRE(samples.size() == 9);
  for (std::size_t i = 0; i < samples.size(); ++i) {
    CHECK(samples[i].context.size() == 300);
    CHECK(samples[i].context == again[i].context);
    CHECK(samples[i].answer.size() == 5);
  }
  CHECK(samples[0].context != samples[8].context);
  CHECK_THROWS_AS(make_samples(std::span(text).first(299), tokenizer, 1, 300), kvc::Error);
}
