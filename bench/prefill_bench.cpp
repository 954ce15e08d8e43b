// Causal attention over a prompt that is already stored, and what a policy adds to it.
//   prefill/<policy>/<isa>/n:<tokens>/g:<query heads per KV head>/d:<head_dim>
// Counters: macs_per_second of the causal half (scores and sums), peak_share of the machine's f32 multiply-add peak measured
// in the same process; for policies upkeep_share = (time - time of the full cache) / time of the full cache.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "kvc/kvc.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/multiply_add_peak.hpp"
#include "support/sequence.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double prefill_seconds(const kvc::CacheShape& shape, const kvc::AnyPolicy& policy, const bench::Sequence& sequence,
                       std::vector<float>& out) {
  kvc::KVCache cache(shape, policy);
  const std::size_t tokens = sequence.piece();
  const auto begin = Clock::now();
  cache.prefill(0, sequence.tokens(0, tokens), {out.data(), tokens, sequence.query_width()});
  benchmark::DoNotOptimize(out.data());
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void prefill(benchmark::State& state, const std::string& text, kvc::Isa isa, std::size_t tokens, std::size_t group,
             std::size_t dim) {
  const kvc::ScopedIsa scoped(isa);
  const kvc::CacheShape shape{.layers = 1, .query_heads = 4 * group, .kv_heads = 4, .head_dim = dim};
  kvc::AnyPolicy policy = kvc::AnyPolicy::parse(text);
  policy.set_default_budget(tokens / 4);
  const kvc::AnyPolicy full = kvc::AnyPolicy::parse("full");
  const bench::Sequence sequence(shape, tokens);
  std::vector<float> out(tokens * sequence.query_width());

  double own = 0, plain = 0;
  prefill_seconds(shape, full, sequence, out);
  for (auto _ : state) {  // in turns, so that the share holds whatever else the machine does
    const double seconds = prefill_seconds(shape, policy, sequence, out);
    state.SetIterationTime(seconds);
    own += seconds;
    if (text != "full") plain += prefill_seconds(shape, full, sequence, out);
  }
  const double macs = 2.0 * static_cast<double>(shape.query_heads * dim) * static_cast<double>(tokens) *
                      static_cast<double>(tokens + 1) / 2 * static_cast<double>(state.iterations());
  state.counters["macs_per_second"] = macs / own;
  state.counters["peak_share"] = macs / own / bench::multiply_add_peak(isa);
  if (text != "full") state.counters["upkeep_share"] = own / plain - 1;
}

}  // namespace

int main(int count, char** words) {
  const auto add = [](const std::string& policy, kvc::Isa isa, std::size_t tokens, std::size_t group, std::size_t dim) {
    benchmark::RegisterBenchmark(("prefill/" + policy + "/" + kvc::to_string(isa) + "/n:" + std::to_string(tokens) +
                                  "/g:" + std::to_string(group) + "/d:" + std::to_string(dim))
                                     .c_str(),
                                 [=](benchmark::State& state) { prefill(state, policy, isa, tokens, group, dim); })
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime();
  };
  for (const kvc::Isa isa : kvc::available_isas())
    for (const std::size_t dim : {64u, 128u}) add("full", isa, 2048, dim == 64 ? 3 : 4, dim);
  for (const char* policy : {"snapkv", "h2o", "streaming_llm", "kivi:bits=4"})
    add(policy, kvc::best_isa(), 2048, 4, 128);
  benchmark::Initialize(&count, words);
  if (benchmark::ReportUnrecognizedArguments(count, words)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
