#include "evaluation/report.hpp"

#include <algorithm>
#include <sstream>

#include "catch_shim.hpp"
#include "evaluation/report_fixture.hpp"

using namespace evaluation;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::size_t shown(const std::string& text) {
  return static_cast<std::size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

TEST_CASE("the columns of the table line up, and a legend explains them") {
  Report report =
      measured_report({measured_result("h2o", 0.25), measured_result("snapkv | kivi:bits=4,group=64", 0.5)});
  report.lengths[0].results[0].kl->error.reset();  // of one window there is none
  std::istringstream lines(table(report));
  std::string first, line;
  std::getline(lines, first);
  for (int i = 0; i < 4; ++i) {
    std::getline(lines, line);
    CHECK(shown(line) == first.size());
  }
  CHECK(contains(line, "3/4"));
  CHECK(contains(line, "1.105 ±.000"));
  CHECK(contains(line, "0.0500 ±.0100"));
  std::getline(lines, line);
  CHECK(line.empty());
  std::getline(lines, line);
  CHECK(line.starts_with("Prompts of 1024 tokens. The full cache in f32: perplexity "));
  CHECK(contains(table(report), "\nkeep  "));
}

TEST_CASE("every length of prompts has a table of its own, under one legend") {
  Report report = measured_report({measured_result("h2o", 0.25)});
  report.lengths.push_back(report.lengths[0]);
  report.lengths[1].prompt = 4096;
  report.lengths[1].repeat_seconds = 4;
  const std::string text = table(report);
  CHECK(contains(text, "Prompts of 1024 tokens."));
  CHECK(contains(text, "Prompts of 4096 tokens."));
  CHECK(contains(text, "and repeats it in 4.00 s"));
  CHECK(text.find("top-1    share") == text.rfind("top-1    share"));
}

TEST_CASE("the table says how the model was computed, and which texts were for tuning") {
  Report report = measured_report({measured_result("full", 1)});
  CHECK_FALSE(contains(table(report), "activations of 8 bits"));
  CHECK_FALSE(contains(table(report), "--tune-texts"));
  report.protocol.fast = true;
  report.protocol.tuning = true;
  CHECK(contains(table(report), "activations of 8 bits"));
  CHECK(contains(table(report), "texts for settling parameters"));
}

TEST_CASE("what was not measured is a dash in the table") {
  Tally tally = measured();
  tally.windows.clear();
  tally.answers.clear();
  const Result result = make_result({"full", 1, kvc::AnyPolicy::parse("full")}, tally, tally);
  Report report = measured_report({result});
  report.protocol.windows.count = 0;
  CHECK(contains(table(report), " - "));
  CHECK_FALSE(contains(table(report), "top-1    share"));
}
