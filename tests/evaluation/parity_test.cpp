// The policies against kvpress, on the same token ids, with the same protocol.
#include <cmath>

#include "catch_shim.hpp"
#include "engine/model_file.hpp"
#include "engine/thread_pool.hpp"
#include "evaluation/comparison.hpp"
#include "evaluation/json.hpp"
#include "evaluation/results.hpp"

using namespace evaluation;

namespace {

constexpr std::size_t Samples = 8;

/// A policy here and its name and setting in the reference files.
struct Counterpart {
  const char *policy, *name, *setting;
};

constexpr Counterpart Counterparts[] = {
    {"full", "full", ""},
    {"streaming_llm:sinks=4", "streaming_llm", ""},
    {"snapkv:window=64,kernel=5", "snapkv", ""},
    {"knorm", "knorm", ""},
    {"ada_kv:base=snapkv,safeguard=minimum,floor_alpha=0.2,window=64,kernel=5", "adakv_snapkv", ""},
    {"h2o:recent=0,normalize,when=prompt_end", "observed_attention", ""},
    {"kivi:bits=2,residual=32,metadata=f32", "kivi2", "bits=2,G=32,R=32"},
    {"kivi:bits=2,residual=128,metadata=f32", "kivi2", "bits=2,G=32,R=128"},
    {"kivi:bits=4,residual=32,metadata=f32", "kivi4", "bits=4,G=32,R=32"},
    {"kivi:bits=4,residual=128,metadata=f32", "kivi4", "bits=4,G=32,R=128"},
    {"mini_cache", "minicache", "S=15,t=0.6,gamma=0.05,retention=far"},
    {"mini_cache:retention=literal", "minicache", "S=15,t=0.6,gamma=0.05,retention=literal"},
    {"mini_cache:retention=none", "minicache", "S=15,t=0.6,gamma=0.05,retention=none"},
};

struct Measured {
  std::vector<Result> results;
  double full_nll = 0;
};

/// All windows and samples of the reference, once for all tests.
const Measured& measured() {
  static const Measured all = [] {
    std::string policies;
    for (const Counterpart& counterpart : Counterparts)
      policies += (policies.empty() ? "" : "; ") + std::string(counterpart.policy);
    engine::ThreadPool pool;
    const engine::Model model = engine::Model::load(model_path(), pool);
    Comparison comparison(model, read_contestants(policies, {0.5, 0.25}),
                          {.dense = kvc::Scalar::f32, .prompt_only = true});
    const auto silent = [](const std::string&) {};
    for (const Window& window : read_windows(reference("quality_public.json"), WindowPlan{}))
      comparison.run(window, silent);
    for (const Sample& sample : read_samples(reference("retrieval_samples.json"))) comparison.run(sample, silent);

    Measured done{{}, comparison.reference().mean_nll()};
    for (std::size_t c = 0; c < comparison.contestants().size(); ++c)
      done.results.push_back(make_result(comparison.contestants()[c], comparison.tallies()[c], comparison.reference()));
    return done;
  }();
  return all;
}

/// The reference's row for one of our results.
const Json& row_of(const Json& rows, const Result& result) {
  for (const Counterpart& counterpart : Counterparts) {
    if (kvc::AnyPolicy::parse(counterpart.policy).to_string() != result.policy) continue;
    for (const Json& row : rows)
      if (row.at("policy").get<std::string>() == counterpart.name &&
          row.at("setting").get<std::string>() == counterpart.setting &&
          (*counterpart.setting != '\0' || row.at("keep").get<double>() == result.keep))
        return row;
  }
  throw std::runtime_error("the reference has no row for " + result.policy);
}

}  // namespace

TEST_CASE("the full cache's likelihood is the reference's", "[model]") {
  const Json quality = Json::parse(read_text(reference("quality_public.json")));
  CHECK(std::abs(measured().full_nll - quality.at("summary_per_text").at("emma")[0].at("mean_nll").get<double>()) <
        1e-3);
}

TEST_CASE("perplexity ratios are kvpress's within one percent", "[model]") {
  const Json quality = Json::parse(read_text(reference("quality_public.json")));
  REQUIRE(measured().results.size() == 18);  // five policies at two fractions, eight without
  for (const Result& result : measured().results) {
    const double expected = row_of(quality.at("summary_per_text").at("emma"), result).at("ppl_ratio").get<double>();
    INFO(result.policy << " at " << result.keep << ": " << result.perplexity_ratio->value << ", kvpress " << expected);
    CHECK(std::abs(result.perplexity_ratio->value / expected - 1) < 0.01);
  }
}

TEST_CASE("KL divergence and top-1 agreement are kvpress's", "[model]") {
  const Json quality = Json::parse(read_text(reference("quality_public.json")));
  for (const Result& result : measured().results) {
    const Json& row = row_of(quality.at("summary_per_text").at("emma"), result);
    INFO(result.policy << " at " << result.keep << ": " << result.kl->value << ", kvpress "
                       << row.at("kl").get<double>());
    CHECK(std::abs(result.kl->value - row.at("kl").get<double>()) < 0.002 + 0.02 * row.at("kl").get<double>());
    CHECK(std::abs(result.top1->value - row.at("top1_agree").get<double>()) < 0.01);  // 3 of 384 predictions
  }
}

TEST_CASE("passkeys found differ from kvpress's by one sample at most", "[model]") {
  const Json retrieval = Json::parse(read_text(reference("retrieval_samples.json")));
  for (const Result& result : measured().results) {
    const double expected = row_of(retrieval.at("summary"), result).at("exact").get<double>();
    INFO(result.policy << " at " << result.keep << ": " << result.found << " of 8, kvpress " << expected);
    CHECK(result.asked == Samples);
    CHECK(std::abs(static_cast<double>(result.found) - expected) <= 1);
  }
}
