// What a policy costs while decoding, beyond attention itself: sums, selection, eviction, sealing, merging.
//   policy/<policy>/n:<slots>/g:<query heads per KV head>/d:<head_dim>
// Time: one decode step of a layer. Counters: attention_us of the same cache (append and policy left out), upkeep_us = step -
// attention, upkeep_share = upkeep / attention, bytes held, ratio to fp16 of all tokens seen. Steps in which another
// process took the core are left out of the counters: those where a step or its attention took over twice its median, which
// sealing a block or opening one does not; left_out is their share.
//   shifted/<policy>/n:<slots>/stretches:<s>/g:…/d:…   attention alone over s stretches of slots that were shifted by other
//                                                      distances, as s - 1 context shifts leave them; 1: none was
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "kvc/kvc.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/sequence.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> times) {
  std::ranges::nth_element(times, times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2));
  return times[times.size() / 2];
}

/// Every evicting policy is full when the timing starts, so that each step evicts.
void step(benchmark::State& state, const std::string& text, std::size_t slots, std::size_t group, std::size_t dim) {
  const kvc::CacheShape shape{.layers = 1, .query_heads = 8 * group, .kv_heads = 8, .head_dim = dim};
  kvc::AnyPolicy policy = kvc::AnyPolicy::parse(text);
  policy.set_default_budget(slots);
  kvc::KVCache cache(shape, policy);
  const bench::Sequence sequence(shape, slots + 64);
  sequence.fill(cache, slots + 64);
  std::vector<float> out(sequence.query_width());
  const kvc::Rows<float> row(out.data(), 1, out.size());
  const kvc::Stats stats = cache.stats();  // before room is made for the steps to come
  cache.reserve(slots + 65536);

  std::vector<double> wholes, attentions;
  std::size_t token = 0;
  for (auto _ : state) {
    auto begin = Clock::now();
    cache.decode(0, sequence.tokens(token, 1), row);
    const double seconds = seconds_since(begin);
    begin = Clock::now();
    cache.attend(0, sequence.query(token), row);
    attentions.push_back(seconds_since(begin));
    benchmark::DoNotOptimize(out.data());
    wholes.push_back(seconds);
    state.SetIterationTime(seconds);
    ++token;
  }
  const double longest_whole = 2 * median(wholes), longest_attention = 2 * median(attentions);
  double attention = 0, whole = 0, steps = 0;
  for (std::size_t i = 0; i < wholes.size(); ++i) {
    if (wholes[i] > longest_whole || attentions[i] > longest_attention) continue;
    whole += wholes[i];
    attention += attentions[i];
    ++steps;
  }
  state.counters["left_out"] = 1 - steps / static_cast<double>(wholes.size());
  state.counters["attention_us"] = attention / steps * 1e6;
  state.counters["upkeep_us"] = (whole - attention) / steps * 1e6;
  state.counters["upkeep_share"] = (whole - attention) / attention;
  state.counters["bytes"] = static_cast<double>(stats.bytes());
  state.counters["ratio"] = stats.ratio();
}

/// Queries are turned once per stretch.
void attend_shifted(benchmark::State& state, const std::string& text, std::size_t slots, std::size_t stretches,
                    std::size_t group, std::size_t dim) {
  const kvc::CacheShape shape{
      .layers = 1, .query_heads = 8 * group, .kv_heads = 8, .head_dim = dim, .rotary = kvc::Rotary::standard(dim)};
  kvc::KVCache cache(shape, kvc::AnyPolicy::parse(text));
  const bench::Sequence sequence(shape, slots);
  sequence.fill(cache, slots);
  for (std::size_t i = stretches - 1; i > 0; --i)
    cache.shift(static_cast<kvc::Position>(slots * i / stretches), cache.next_position(), 1);
  std::vector<float> out(sequence.query_width());
  std::size_t token = 0;
  for (auto _ : state) {
    cache.attend(0, sequence.query(token++), {out.data(), 1, out.size()});
    benchmark::DoNotOptimize(out.data());
  }
}

}  // namespace

int main(int count, char** words) {
  const char* policies[] = {"full",
                            "full:bits=8",
                            "full:bits=4",
                            "kivi:bits=4",
                            "kivi:bits=2",
                            "streaming_llm",
                            "h2o",
                            "snapkv",
                            "knorm",
                            "ada_kv:base=snapkv",
                            "quest",
                            "quest:dense_layers=0",
                            "h2o | kivi:bits=4",
                            "snapkv | kivi:bits=4",
                            "streaming_llm | kivi:bits=4"};
  for (const char* policy : policies)
    for (const std::size_t slots : {1024u, 4096u})
      benchmark::RegisterBenchmark(
          ("policy/" + std::string(policy) + "/n:" + std::to_string(slots) + "/g:4/d:128").c_str(),
          [=](benchmark::State& state) { step(state, policy, slots, 4, 128); })
          ->Unit(benchmark::kMicrosecond)
          ->UseManualTime();
  for (const char* policy : {"full", "kivi:bits=4"})
    for (const std::size_t stretches : {1u, 2u, 3u, 16u, 256u})
      benchmark::RegisterBenchmark(
          ("shifted/" + std::string(policy) + "/n:4096/stretches:" + std::to_string(stretches) + "/g:4/d:128").c_str(),
          [=](benchmark::State& state) { attend_shifted(state, policy, 4096, stretches, 4, 128); })
          ->Unit(benchmark::kMicrosecond);
  benchmark::Initialize(&count, words);
  if (benchmark::ReportUnrecognizedArguments(count, words)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
