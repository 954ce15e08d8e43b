#include "evaluation/results.hpp"

#include <cmath>

#include "catch_shim.hpp"
#include "evaluation/json.hpp"
#include "evaluation/report_fixture.hpp"
#include "kvc/error.hpp"
#include "support/temporary_file.hpp"

using namespace evaluation;

namespace {

bool near(double a, double b) {
  return std::abs(a - b) < 1e-12;
}

}  // namespace

TEST_CASE("figures are means over prompts and windows, with their standard errors") {
  const Result result = measured_result("snapkv", 0.5);
  CHECK(result.bytes.value == 1024);
  CHECK(result.bytes.error == 24);
  CHECK(result.parts.slack == 44);
  CHECK(result.dense_bytes == 4096);
  CHECK(result.ratio() == 4);
  CHECK(result.kept_fraction.value == 0.5);
  CHECK(result.nll->value == 3);
  CHECK(*result.perplexity() == std::exp(3.0));
  CHECK(near(result.perplexity_ratio->value, std::exp(0.1)));
  CHECK(near(result.kl->value, 0.05));
  CHECK(near(result.kl->error.value(), 0.01));
  CHECK(near(result.kl_first->value, 0.03));
  CHECK(near(result.kl_last->value, 0.08));
  CHECK(near(result.top1->value, 0.8));
  CHECK(result.act_seconds == 0.5);
}

TEST_CASE("the error of a perplexity ratio is that of what windows differ by, not of what they are") {
  Tally full = measured(), other = measured();
  full.windows[0].nll = 1.9;
  full.windows[1].nll = 3.7;
  const Result result = make_result({"h2o", 0.5, kvc::AnyPolicy::parse("h2o")}, other, full);
  const double ratio = std::exp(0.2);
  CHECK(near(result.perplexity_ratio->value, ratio));
  CHECK(near(result.perplexity_ratio->error.value(), ratio * 0.1));
}

TEST_CASE("answers are counted, by depth too, and prompts are their repetitions") {
  const Result result = measured_result("snapkv", 0.5);
  CHECK(result.found == 3);
  CHECK(result.asked == 4);
  CHECK(result.passkey->value == 0.75);
  CHECK(near(result.passkey->error.value(), 0.25));  // of the shares 1 and 1/2
  REQUIRE(result.by_depth.size() == 2);
  CHECK((result.by_depth[0].depth == 0.25 && result.by_depth[0].found == 2 && result.by_depth[0].asked == 2));
  CHECK((result.by_depth[1].depth == 0.75 && result.by_depth[1].found == 1 && result.by_depth[1].asked == 2));
}

TEST_CASE("the JSON has one entry per policy and keep fraction, with every figure and its error") {
  const Result one = measured_result("snapkv | kivi:bits=4", 0.5);
  const Json report = Json::parse(to_json(measured_report({one, measured_result("full", 1)})));
  CHECK(report.at("model").get<std::string>() == "a \"model\".gguf");
  CHECK(report.at("protocol").at("needles").get<int>() == 2);
  const Json& length = report.at("lengths").at(0);
  CHECK(length.at("prompt").get<int>() == 1024);
  CHECK(length.at("repeat_seconds").is_null());
  REQUIRE(length.at("results").size() == 2);
  const Json& entry = length.at("results").at(0);
  CHECK(entry.at("policy").get<std::string>() == "snapkv | kivi:bits=4");
  CHECK(entry.at("keep").get<double>() == 0.5);
  CHECK(entry.at("bytes").get<double>() == 1024);
  CHECK(entry.at("bytes_error").get<double>() == 24);
  CHECK(entry.at("bytes_codes").get<double>() == 600);
  CHECK(entry.at("ratio").get<double>() == 4);
  CHECK(entry.at("kl").get<double>() == one.kl->value);
  CHECK(entry.at("kl_error").get<double>() == *one.kl->error);
  CHECK(entry.at("kl_last_quarter").get<double>() == one.kl_last->value);
  CHECK(entry.at("passkeys_found").get<int>() == 3);
  CHECK(entry.at("act_peak_bytes").get<double>() == 3 << 20);
  CHECK(entry.at("kept_pixels").get<std::string>() == "f00f01ff");
}

TEST_CASE("what was not measured is null") {
  Tally tally = measured();
  tally.windows.clear();
  tally.answers.clear();
  tally.token_ms.reset();
  const Result result = make_result({"full", 1, kvc::AnyPolicy::parse("full")}, tally, tally);
  const Json report = Json::parse(to_json(measured_report({result})));
  const Json& entry = report.at("lengths").at(0).at("results").at(0);
  for (const char* name : {"nll", "perplexity", "kl", "kl_error", "passkey", "token_ms"})
    CHECK(entry.at(name).is_null());
}

TEST_CASE("compressing is paid for by the tokens that are faster than over the full cache in fp16") {
  Result full = measured_result("full", 1), slow = measured_result("h2o", 0.5), fast = slow, probed = slow;
  full.token_ms = 9;
  fast.token_ms = probed.token_ms = 8.5;
  fast.act_seconds = probed.act_seconds = 0.5;
  probed.probed = true;
  slow.token_ms = 9;
  PromptResults length = measured_report({full, slow, fast, probed}).lengths[0];
  length.repeat_seconds = 2;
  CHECK_FALSE(tokens_until_paid(length, slow));
  CHECK(near(tokens_until_paid(length, fast).value(), 1000));
  CHECK(near(tokens_until_paid(length, probed).value(), 5000));
  length.results.erase(length.results.begin());
  CHECK_FALSE(tokens_until_paid(length, fast));
}

TEST_CASE("a report is the same after it was written and read") {
  const Report report = measured_report({measured_result("snapkv", 0.5), measured_result("full", 1)});
  const TemporaryFile file(to_json(report));
  CHECK(to_json(read_reports({file.path()})) == to_json(report));
}

TEST_CASE("reports of several files are one: the last file's results for a policy count") {
  Report first = measured_report({measured_result("snapkv", 0.5), measured_result("full", 1)});
  Report second = measured_report({measured_result("h2o", 0.5), measured_result("snapkv", 0.5)});
  second.lengths[0].results[1].token_ms = 1;
  second.protocol.commands = {"compare --another"};
  Report longer = measured_report({measured_result("h2o", 0.5)});
  longer.lengths[0].prompt = 4096;
  const TemporaryFile a(to_json(first)), b(to_json(second)), c(to_json(longer));
  const Report all = read_reports({a.path(), b.path(), c.path()});
  REQUIRE(all.lengths.size() == 2);
  REQUIRE(all.lengths[0].results.size() == 3);
  CHECK(all.lengths[0].results[0].token_ms == 1);
  CHECK(all.lengths[0].results[2].policy == "h2o");
  CHECK(all.lengths[1].prompt == 4096);
  CHECK(all.protocol.commands == std::vector<std::string>{"compare --model \"a b\"", "compare --another"});
}

TEST_CASE("reports that were measured otherwise do not mix, and what differs is named") {
  Report other = measured_report({measured_result("h2o", 0.5)});
  other.protocol.windows.count = 3;
  const TemporaryFile a(to_json(measured_report({measured_result("h2o", 0.5)}))), b(to_json(other));
  try {
    read_reports({a.path(), b.path()});
    FAIL("windows of different counts were mixed");
  } catch (const kvc::Error& error) {
    CHECK(error.code() == kvc::ErrorCode::bad_file);
    CHECK(std::string(error.what()).find("windows is 2 there and 3 here") != std::string::npos);
  }
  Report empty = measured_report({measured_result("h2o", 0.5)});
  empty.lengths[0].results[0].bytes.value = 0;
  const TemporaryFile without_bytes(to_json(empty));
  CHECK_THROWS_AS(read_reports({without_bytes.path()}), kvc::Error);
  const TemporaryFile damaged(R"({"model": "m", "protocol": {}, "lengths": []})");
  CHECK_THROWS_AS(read_reports({damaged.path()}), kvc::Error);
}
