#include "evaluation/passkey.hpp"

#include <map>
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
  const Sample sample = hide_passkeys(hay, {{{{-1, -2}, {-3}, {-4}}, 0.3}}, 10);  // 8 tokens of text, 2.4 before
  CHECK(sample.context == std::vector<int>{0, 1, -1, -2, 2, 3, 4, 5, 6, 7});
  REQUIRE(sample.questions.size() == 1);
  CHECK(sample.questions[0].ids == std::vector<int>{-3});
  CHECK(sample.questions[0].answer == std::vector<int>{-4});
  CHECK(sample.questions[0].depth == 0.3);
}

TEST_CASE("several needles lie at their depths, and the questions come in the order of the needles") {
  std::vector<int> hay(100);
  std::iota(hay.begin(), hay.end(), 0);
  const Sample sample = hide_passkeys(hay, {{{{-1}, {-2}, {-3}}, 0.5}, {{{-4, -4}, {-5}, {-6}}, 0.25}}, 7);
  CHECK(sample.context == std::vector<int>{0, -4, -4, 1, -1, 2, 3});
  REQUIRE(sample.questions.size() == 2);
  CHECK(sample.questions[0].ids == std::vector<int>{-5});
  CHECK(sample.questions[1].answer == std::vector<int>{-3});
}

TEST_CASE("a needle longer than the context and a text shorter than it are refused") {
  const std::vector<int> hay(7, 0);
  CHECK_THROWS_AS(hide_passkeys(hay, {{{{1, 2}, {3}, {4}}, 0.5}}, 2), kvc::Error);
  CHECK_THROWS_AS(hide_passkeys(hay, {{{{1, 2}, {3}, {4}}, 0.5}}, 10), kvc::Error);
}

TEST_CASE("samples are read as literal ids") {
  const TemporaryFile file(R"({"samples": [{"context_ids": [1, 2], "question_ids": [3], "answer_ids": [4, 5]}]})");
  const auto samples = read_samples(file.path());
  REQUIRE(samples.size() == 1);
  CHECK(samples[0].context == std::vector<int>{1, 2});
  REQUIRE(samples[0].questions.size() == 1);
  CHECK(samples[0].questions[0].answer == std::vector<int>{4, 5});
  CHECK_FALSE(samples[0].questions[0].depth);
}

TEST_CASE("a sample of a file may have several questions, with the depths of their answers") {
  const TemporaryFile file(
      R"([{"context_ids": [1], "questions": [{"question_ids": [2], "answer_ids": [3], "depth": 0.5},
                                                                    {"question_ids": [4], "answer_ids": [5]}]}])");
  const auto samples = read_samples(file.path());
  REQUIRE(samples.at(0).questions.size() == 2);
  CHECK(samples[0].questions[0].depth == 0.5);
  CHECK(samples[0].questions[1].ids == std::vector<int>{4});
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
    CHECK(words.question == samples[i].questions.at(0).ids);
    CHECK(words.answer == samples[i].questions[0].answer);

    const auto begin =
        samples[i].context.begin() + static_cast<std::ptrdiff_t>(references[i].at("needle_start").get<double>());
    const auto end = begin + static_cast<std::ptrdiff_t>(words.needle.size());
    CHECK(std::vector<int>(begin, end) == words.needle);
    std::vector<int> hay(samples[i].context.begin(), begin);
    hay.insert(hay.end(), end, samples[i].context.end());
    CHECK(hide_passkeys(hay, {{words, references[i].at("depth").get<double>()}}, 1024).context == samples[i].context);
  }
}

TEST_CASE("samples made from a text are the same every time and as long as asked", "[model]") {
  const engine::Tokenizer tokenizer(model_file());
  std::vector<int> text(5000);
  std::iota(text.begin(), text.end(), 0);
  const PasskeyPlan plan{.count = 9, .needles = 3, .context = 300};
  const auto samples = make_samples(text, tokenizer, plan), again = make_samples(text, tokenizer, plan);
  REQUIRE(samples.size() == 9);
  std::map<double, int> at_depth;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    CHECK(samples[i].context.size() == 300);
    CHECK(samples[i].context == again[i].context);
    REQUIRE(samples[i].questions.size() == 3);
    CHECK(samples[i].questions[0].ids != samples[i].questions[1].ids);
    for (const Question& question : samples[i].questions) {
      CHECK(question.answer.size() == 5);
      if (i < 8) ++at_depth[question.depth.value()];
    }
  }
  CHECK(at_depth.size() == 8);  // eight samples have three needles at each of eight depths
  for (const auto& [depth, count] : at_depth) CHECK(count == 3);
  CHECK(samples[0].context != samples[8].context);
  CHECK_THROWS_AS(make_samples(std::span(text).first(299), tokenizer, plan), kvc::Error);
}
