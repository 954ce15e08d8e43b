#include "evaluation/quality_plot.hpp"

#include <algorithm>

#include "catch_shim.hpp"
#include "evaluation/report_fixture.hpp"

using namespace evaluation;

namespace {

Result point(const char* policy, double bytes, double kl, double ratio = 1) {
  Result result = measured_result(policy, 1);
  result.bytes.value = bytes;
  result.kl->value = kl;
  result.perplexity_ratio->value = ratio;
  return result;
}

PromptResults of(std::vector<Result> results) {
  return measured_report(std::move(results)).lengths[0];
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++found;
  return found;
}

}  // namespace

TEST_CASE(
    "the Pareto front holds what nothing beats in both bytes and quality, from the largest cache to the smallest") {
  const std::vector<Result> results = {point("full", 1000, 0.0), point("h2o", 500, 0.02), point("snapkv", 500, 0.01),
                                       point("knorm", 600, 0.03), point("kivi", 100, 0.2)};
  CHECK(pareto_front(results, Quality::divergence) == std::vector<std::size_t>{0, 2, 4});
}

TEST_CASE("results without windows are no part of the front, nor of the plot") {
  std::vector<Result> results = {point("full", 1000, 0.0), point("h2o", 500, 0.02)};
  results[1].kl.reset();
  CHECK(pareto_front(results, Quality::divergence) == std::vector<std::size_t>{0});
  const std::string plot = quality_plot(of(results), measured_report({}).protocol, {});
  CHECK(count(plot, ">full</text>") == 1);
  CHECK(count(plot, "h2o") == 0);
}

TEST_CASE("what a policy does to a cache is told from what was measured") {
  Result result = point("full", 1000, 0);
  result.dense_bytes = 1000;
  result.kept_fraction.value = 1;
  result.parts = {.dense = 1000};
  CHECK(kind_of(result) == Kind::full);
  result.parts.codes = 100;
  CHECK(kind_of(result) == Kind::quantize);
  result.kept_fraction.value = 0.25;
  CHECK(kind_of(result) == Kind::both);
  result.parts.codes = 0;
  CHECK(kind_of(result) == Kind::evict);
  result.kept_fraction.value = 1;
  result.bytes.value = 800;
  CHECK(kind_of(result) == Kind::other);
}

TEST_CASE("every policy has a marker with its figures, and a shape of its own among its kind") {
  const std::vector<Result> results = {point("h2o", 500, 0.02), point("snapkv", 400, 0.03), point("h2o", 300, 0.04)};
  CHECK(shape_of(results, 0) == 0);
  CHECK(shape_of(results, 1) == 1);
  CHECK(shape_of(results, 2) == 0);
  const std::string plot = quality_plot(of(results), measured_report({}).protocol, {});
  CHECK(count(plot, "<title>") == 3);
  CHECK(count(plot, "<title>snapkv\n") == 1);
  CHECK(count(plot, "class=\"series ") == 1);  // a line through the two of h2o
}

TEST_CASE("labels do not lie on each other, even of points at one place") {
  std::vector<Result> results;
  for (const char* policy : {"full", "h2o", "snapkv", "knorm"}) results.push_back(point(policy, 500, 0.02));
  const std::string plot = quality_plot(of(results), measured_report({}).protocol, {});
  std::vector<std::string> places;
  for (std::size_t at = plot.find("class=\"label"); at != plot.npos; at = plot.find("class=\"label", at + 1)) {
    const std::size_t begin = plot.rfind("<text", at);
    places.push_back(plot.substr(begin, at - begin));
  }
  CHECK(places.size() == 4);
  std::ranges::sort(places);
  CHECK(std::ranges::adjacent_find(places) == places.end());
}

TEST_CASE("a perplexity above the plot stands at its edge with its figure") {
  const std::string plot = quality_plot(of({point("full", 900, 0, 1), point("h2o", 500, 1, 2.5)}),
                                        measured_report({}).protocol, {.quality = Quality::perplexity});
  CHECK(count(plot, ">h2o: +150 %</text>") == 1);
}

TEST_CASE("a plot for a file of its own brings its style, for light and dark, and says what was measured") {
  const Report report = measured_report({point("full", 900, 0)});
  const std::string alone = quality_plot(report.lengths[0], report.protocol, {.standalone = true});
  CHECK(count(alone, "prefers-color-scheme:dark") == 1);
  CHECK(count(alone, "prompts of 1024 tokens, 2 windows of 128 tokens") == 1);
  CHECK(count(quality_plot(report.lengths[0], report.protocol, {}), "<style>") == 0);
}
