// Decode attention on every format and instruction set: one token's queries over n cached tokens.
//   decode/<codec>/<isa>/n:<tokens>/g:<query heads per KV head>/d:<head_dim>/t:<threads>      out of memory
//   decode_l2/…                                                                               one KV head, resident in L2
// With several threads each attends over caches of its own; the time is of one attention by each.
// Counters:
//   bytes_per_second, elements_per_second    keys and values as stored, and as numbers
//   bandwidth_share   of the read bandwidth measured in this process, with as many threads, on a buffer as large as the caches
//   limit_share       limit time / measured time; the limit time is the larger of bytes / that bandwidth and the time of a bare
//                     unpack-and-multiply loop of the same format, group, instruction set and arithmetic on L1-resident data
// --benchmark_filter chooses; --growth adds 2-bit contexts of 1k to 1M tokens.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kvc/kernels/dispatch.hpp"
#include "kvc/kvc.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/bare_loop.hpp"
#include "support/read_bandwidth.hpp"
#include "support/sequence.hpp"

namespace {

/// Distinct caches of this size in all are walked in turn, so that their bytes come from memory and not from a cache.
constexpr std::size_t WorkingSet = std::size_t{256} << 20;

struct Codec {
  const char *name, *policy;
  unsigned bits;
  kvc::Arithmetic arithmetic = kvc::Arithmetic::accurate;
  std::size_t key_parts = 2,
              value_parts =
                  2;  ///< int8 parts of queries and weights, where integers multiply (without VNNI two are 16 bits)
};
constexpr Codec Codecs[] = {
    {"f32", "full:type=f32", 32},
    {"f16", "full", 16},
    {"bf16", "full:type=bf16", 16},
    {"q8", "full:bits=8", 8},
    {"q4", "full:bits=4", 4},
    {"kivi8", "kivi:bits=8,residual=32", 8},
    {"kivi4", "kivi:bits=4,residual=32", 4},
    {"kivi3", "kivi:bits=3,residual=32", 3},
    {"kivi2", "kivi:bits=2,residual=32", 2, kvc::Arithmetic::accurate, 1, 1},  // normal data: one part will do
    {"kivi2_fast", "kivi:bits=2,residual=32", 2, kvc::Arithmetic::fast, 1, 1},
    {"kivi4_exact", "kivi:bits=4,residual=32", 4, kvc::Arithmetic::exact},
    {"mini4", "mini_cache:start=0 | kivi:bits=4,residual=32", 4}};

struct Setting {
  Codec codec;
  kvc::Isa isa;
  std::size_t tokens, group, dim, threads;
  bool resident = false;

  std::size_t kv_heads() const { return resident ? 1 : 8; }
  std::size_t layers() const { return std::strncmp(codec.name, "mini", 4) == 0 ? 2 : 1; }
  std::string name() const {
    return std::string(resident ? "decode_l2/" : "decode/") + codec.name + "/" + kvc::to_string(isa) +
           "/n:" + std::to_string(tokens) + "/g:" + std::to_string(group) + "/d:" + std::to_string(dim) +
           "/t:" + std::to_string(threads);
  }
};

/// The caches of one setting. They are kept for the next setting if only the instruction set or the threads differ.
struct Caches {
  kvc::CacheShape shape;
  std::vector<std::unique_ptr<kvc::CacheCore>> all;
  std::size_t bytes = 0;  ///< that one attention over all layers of one cache reads

  static const Caches& of(const Setting& setting) {
    static std::string key;
    static Caches caches;
    const std::string wanted = std::string(setting.codec.name) + "/" + std::to_string(setting.tokens) + "/" +
                               std::to_string(setting.group) + "/" + std::to_string(setting.dim) + "/" +
                               std::to_string(setting.resident);
    if (key != wanted) {
      caches = Caches{};  // before the next ones are made
      caches = make(setting);
      key = wanted;
    }
    return caches;
  }

 private:
  static Caches make(const Setting& setting) {
    Caches caches;
    caches.shape = {.layers = setting.layers(),
                    .query_heads = setting.group * setting.kv_heads(),
                    .kv_heads = setting.kv_heads(),
                    .head_dim = setting.dim};
    const bench::Sequence sequence(caches.shape, std::min<std::size_t>(setting.tokens, 4096));
    const kvc::AnyPolicy policy = kvc::AnyPolicy::parse(setting.codec.policy);
    for (std::size_t total = 0; total < (setting.resident ? 1 : WorkingSet); total += caches.bytes) {
      caches.all.push_back(std::make_unique<kvc::KVCache<kvc::AnyPolicy>>(
          caches.shape, policy, kvc::CacheOptions{.arithmetic = setting.codec.arithmetic}));
      for (std::size_t done = 0; done < setting.tokens; done += sequence.piece())
        for (std::size_t layer = 0; layer < caches.shape.layers; ++layer)
          caches.all.back()->prefill(layer, sequence.tokens(0, std::min(sequence.piece(), setting.tokens - done)), {},
                                     done + sequence.piece() >= setting.tokens);
      caches.bytes = caches.all.back()->stats().payload;
    }
    return caches;
  }
};

/// Seconds that one core takes for a bare loop over the elements of `layers` layers; 0 where no such loop exists.
double bare_seconds(const Setting& setting, double elements) {
  bench::BareLoop loop{.bits = setting.codec.bits, .rows = setting.group};
  const double half = elements / 2;
  if (setting.codec.bits >= 16) {
    loop.operand = setting.codec.bits == 32 ? bench::Operand::f32 : bench::Operand::half;
    loop.bfloat = std::strcmp(setting.codec.name, "bf16") == 0;
    const double rate = bench::bare_loop_rate(setting.isa, loop);
    return rate > 0 ? elements / rate : 0;
  }
  const bool integers =
      setting.codec.arithmetic != kvc::Arithmetic::exact && kvc::kernels::packed_table(setting.isa).multiplies_integers;
  loop.operand = integers ? bench::Operand::integers : bench::Operand::codes;
  double seconds = 0;
  for (const std::size_t parts : {setting.codec.key_parts, setting.codec.value_parts}) {
    loop.shorts = integers && parts == 2 && (setting.isa == kvc::Isa::avx2 || setting.isa == kvc::Isa::avx512);
    loop.rows = setting.group * (integers && !loop.shorts ? parts : 1);
    const double rate = bench::bare_loop_rate(setting.isa, loop);
    if (rate == 0) return 0;
    seconds += half / rate;
  }
  return seconds;
}

void decode(benchmark::State& state, const Setting& setting) {
  const kvc::ScopedIsa scoped(setting.isa);
  const Caches& caches = Caches::of(setting);
  const std::size_t width = caches.shape.query_heads * setting.dim, layers = caches.shape.layers;
  const std::vector<float> queries = bench::normal_floats(64 * width, 7);
  std::vector<float> out(setting.threads * width);
  kvc::ThreadPool pool(setting.threads);
  // Of one iteration, in which every thread attends once.
  const double elements =
      static_cast<double>(2 * setting.tokens * setting.kv_heads() * setting.dim * layers * setting.threads);
  const double bytes = static_cast<double>(caches.bytes * setting.threads);
  const double bandwidth = bench::read_bandwidth(
      setting.resident ? caches.bytes : std::max(WorkingSet, caches.bytes * caches.all.size()), setting.threads);
  const double bare = bare_seconds(setting, elements) / static_cast<double>(setting.threads);

  std::size_t next = 0;
  for (auto _ : state) {
    pool.parallel_for(setting.threads, [&](std::size_t thread) {
      const kvc::CacheCore& cache = *caches.all[(next + thread) % caches.all.size()];
      const float* query = queries.data() + (next + thread) % 64 * width;
      for (std::size_t layer = 0; layer < layers; ++layer)
        cache.attend(layer, {query, 1, width}, {out.data() + thread * width, 1, width});
    });
    benchmark::DoNotOptimize(out.data());
    next += setting.threads;
  }
  const double steps = static_cast<double>(state.iterations());
  using benchmark::Counter;
  const auto rate = [](double value) { return Counter(value, Counter::kIsRate); };
  const auto time_share = [&](double seconds) { return Counter(seconds * steps, Counter::kIsRate); };
  state.counters["bytes_per_second"] = rate(bytes * steps);
  state.counters["elements_per_second"] = rate(elements * steps);
  state.counters["bandwidth_share"] = time_share(bytes / bandwidth);
  state.counters["limit_share"] = time_share(std::max(bytes / bandwidth, bare));
  state.counters["read_bandwidth"] = bandwidth;
  state.counters["bare_us"] = bare * 1e6;
}

void add(const Setting& setting) {
  benchmark::RegisterBenchmark(setting.name().c_str(), [=](benchmark::State& state) { decode(state, setting); })
      ->Unit(benchmark::kMicrosecond)
      ->MeasureProcessCPUTime()
      ->UseRealTime();
}

}  // namespace

int main(int count, char** words) {
  bool growth = false;
  count = static_cast<int>(std::remove_if(words + 1, words + count,
                                          [&](const char* word) {
                                            const bool found = std::strcmp(word, "--growth") == 0;
                                            growth |= found;
                                            return found;
                                          }) -
                           words);
  for (const Codec& codec : Codecs) {
    for (const std::size_t group : {1u, 4u}) {
      for (const std::size_t tokens : {4096u, 16384u})
        for (const std::size_t threads : {1u, 2u})
          for (const kvc::Isa isa : kvc::available_isas())
            if (threads == 1 || isa == kvc::available_isas().back()) add({codec, isa, tokens, group, 128, threads});
      for (const kvc::Isa isa : kvc::available_isas()) add({codec, isa, 1024, group, 128, 1, true});
    }
    for (const kvc::Isa isa : kvc::available_isas()) {
      add({codec, isa, 16384, 3, 64, 1});
      add({codec, isa, 16384, 8, 128, 1});
      add({codec, isa, 1024, 8, 128, 1, true});
    }
  }
  if (growth)
    for (std::size_t tokens = 1024; tokens <= std::size_t{1} << 20; tokens *= 4)
      for (const std::size_t group : {1u, 4u})
        for (const std::size_t threads : {1u, 2u})
          add({Codecs[8], kvc::available_isas().back(), tokens, group, 128, threads});
  benchmark::Initialize(&count, words);
  if (benchmark::ReportUnrecognizedArguments(count, words)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
