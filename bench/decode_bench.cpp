// Decode attention on every format and instruction set: one token over n cached ones, keys and values out of memory.
//   decode/<format>/<isa>/n:<tokens>/g:<query heads per KV head>/d:<head_dim>
// Counters: bytes_per_second of keys and values as stored, elements_per_second of keys and values as numbers.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kvc/kvc.hpp"
#include "kvc/policy/any_policy.hpp"

namespace {

constexpr std::size_t KvHeads = 8;
/// Distinct caches are walked in turn, so that their bytes come from memory and not from a cache.
constexpr std::size_t WorkingSet = std::size_t{256} << 20;

std::vector<float> normal_floats(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

void decode(benchmark::State& state, const std::string& policy, kvc::Isa isa, std::size_t tokens, std::size_t group,
            std::size_t dim) {
  const kvc::ScopedIsa scoped(isa);
  const kvc::CacheShape shape{.layers = 1, .query_heads = group * KvHeads, .kv_heads = KvHeads, .head_dim = dim};
  const std::size_t kv_width = KvHeads * dim, q_width = shape.query_heads * dim;
  const std::vector<float> k = normal_floats(tokens * kv_width, 1), v = normal_floats(tokens * kv_width, 2);
  const std::vector<float> q = normal_floats(tokens * q_width, 3);
  std::vector<float> out(q_width);

  const kvc::AnyPolicy parsed = kvc::AnyPolicy::parse(policy);
  std::vector<std::unique_ptr<kvc::CacheCore>> caches;
  std::size_t bytes = 0;
  while (bytes < WorkingSet) {
    auto cache = std::make_unique<kvc::KVCache<kvc::AnyPolicy>>(shape, parsed);
    cache->prefill(
        0, {.q = {q.data(), tokens, q_width}, .k = {k.data(), tokens, kv_width}, .v = {v.data(), tokens, kv_width}},
        {});
    bytes += cache->stats().payload;
    caches.push_back(std::move(cache));
  }
  std::size_t next = 0, read = 0;
  for (auto _ : state) {
    const kvc::CacheCore& cache = *caches[next++ % caches.size()];
    cache.attend(0, {q.data(), 1, q_width}, {out.data(), 1, q_width});
    benchmark::DoNotOptimize(out.data());
    read += bytes / caches.size();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(read));
  state.counters["elements_per_second"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * static_cast<double>(2 * tokens * kv_width),
                         benchmark::Counter::kIsRate);
}

}  // namespace

int main(int count, char** words) {
  const struct {
    const char *name, *policy;
  } formats[] = {
      {"f32", "full:type=f32"}, {"f16", "full"},          {"bf16", "full:type=bf16"},          {"q8", "full:bits=8"},
      {"q4", "full:bits=4"},    {"kivi4", "kivi:bits=4"}, {"kivi2", "kivi:bits=2,residual=32"}};
  for (const auto& format : formats)
    for (const kvc::Isa isa : kvc::available_isas())
      for (const std::size_t tokens : {4096u, 16384u})
        for (const std::size_t group : {1u, 4u})
          benchmark::RegisterBenchmark(
              ("decode/" + std::string(format.name) + "/" + kvc::to_string(isa) + "/n:" + std::to_string(tokens) +
               "/g:" + std::to_string(group) + "/d:128")
                  .c_str(),
              [=](benchmark::State& state) { decode(state, format.policy, isa, tokens, group, 128); })
              ->Unit(benchmark::kMicrosecond);
  benchmark::Initialize(&count, words);
  if (benchmark::ReportUnrecognizedArguments(count, words)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
