#include "evaluation/report.hpp"

#include <cmath>
#include <sstream>

#include "catch_shim.hpp"
#include "evaluation/json.hpp"

using namespace evaluation;

namespace {

Contestant contestant(const char* policy, double keep) {
  return {policy, keep, kvc::AnyPolicy::parse(policy)};
}

Tally measured() {
  Tally tally;
  tally.window_nll = {2.0, 4.0};
  tally.kl = 0.5;
  tally.predictions = 10;
  tally.same_top = 8;
  tally.samples = 4;
  tally.exact = 3;
  tally.prompts = 2;
  tally.bytes = 2048;
  tally.dense_bytes = 8192;
  tally.kept = 1.0;
  tally.attend_us = 12.5;
  tally.token_ms = 7.25;
  return tally;
}

Protocol protocol() {
  Protocol done;
  done.model = "a \"model\".gguf";
  done.text = "t.txt";
  done.samples = 4;
  done.dense = "f16";
  done.threads = 2;
  return done;
}

}  // namespace

TEST_CASE("figures are means over prompts, predictions and windows") {
  Tally full = measured();
  full.window_nll = {1.9, 3.9};
  const Result result = make_result(contestant("snapkv", 0.5), measured(), full);
  CHECK(result.bytes == 1024);
  CHECK(result.dense_bytes == 4096);
  CHECK(result.ratio() == 4);
  CHECK(result.kept_fraction == 0.5);
  CHECK(*result.nll == 3);
  CHECK(*result.perplexity() == std::exp(3.0));
  CHECK(std::abs(*result.perplexity_ratio - std::exp(0.1)) < 1e-12);
  CHECK(*result.kl == 0.05);
  CHECK(*result.top1 == 0.8);
  CHECK(*result.passkey == 0.75);
}

TEST_CASE("the JSON report has one entry per policy and keep fraction, with every field") {
  const Result one = make_result(contestant("snapkv | kivi:bits=4", 0.5), measured(), measured());
  const Json report = Json::parse(json({one, one}, one, protocol()));
  CHECK(report.at("model").get<std::string>() == "a \"model\".gguf");
  CHECK(report.at("protocol").at("prompt").get<double>() == 1024);
  REQUIRE(report.at("results").size() == 2);
  const Json& entry = report.at("results")[0];
  CHECK(entry.at("policy").get<std::string>() == "snapkv | kivi:bits=4");
  CHECK(entry.at("keep").get<double>() == 0.5);
  CHECK(entry.at("bytes").get<double>() == 1024);
  CHECK(entry.at("dense_bytes").get<double>() == 4096);
  CHECK(entry.at("ratio").get<double>() == 4);
  CHECK(entry.at("kept_fraction").get<double>() == 0.5);
  CHECK(entry.at("nll").get<double>() == 3);
  CHECK(entry.at("perplexity").get<double>() == std::exp(3.0));
  CHECK(entry.at("kl").get<double>() == 0.05);
  CHECK(entry.at("top1").get<double>() == 0.8);
  CHECK(entry.at("passkey").get<double>() == 0.75);
  CHECK(entry.at("attend_us").get<double>() == 12.5);
  CHECK(entry.at("token_ms").get<double>() == 7.25);
}

TEST_CASE("both reports say whether the model was computed in 8 bits") {
  const Result one = make_result(contestant("full", 1), measured(), measured());
  for (const bool fast : {false, true}) {
    Protocol how = protocol();
    how.fast = fast;
    CHECK(Json::parse(json({one}, one, how)).at("protocol").at("fast").get<bool>() == fast);
    CHECK((table({one}, one, how).find("activations of 8 bits") != std::string::npos) == fast);
  }
}

TEST_CASE("what was not measured is null in JSON and a dash in the table") {
  Tally tally = measured();
  tally.window_nll.clear();
  tally.samples = 0;
  const Result result = make_result(contestant("full", 1), tally, tally);
  const Json report = Json::parse(json({result}, result, protocol()));
  CHECK_THROWS(report.at("results")[0].at("nll").get<double>());
  CHECK_THROWS(report.at("results")[0].at("passkey").get<double>());
  CHECK(table({result}, result, protocol()).find(" - ") != std::string::npos);
}

TEST_CASE("the columns of the table line up, and a legend explains them") {
  const Result narrow = make_result(contestant("h2o", 0.25), measured(), measured());
  const Result wide = make_result(contestant("snapkv | kivi:bits=4,group=64", 0.5), measured(), measured());
  std::istringstream lines(table({narrow, wide}, narrow, protocol()));
  std::string first, line;
  std::getline(lines, first);
  for (int i = 0; i < 4; ++i) {
    std::getline(lines, line);
    CHECK(line.size() == first.size());
  }
  CHECK(line.find("3/4") != std::string::npos);
  std::getline(lines, line);
  CHECK(line.empty());
  std::getline(lines, line);
  CHECK(line.starts_with("keep  "));
}
