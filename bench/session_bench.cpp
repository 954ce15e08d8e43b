// Saving a cache and loading it again, beside copying the same bytes.
//   session/<policy>/n:<tokens>
// Time, of the processor: save() to memory. Counters, medians of the iterations, in which the four take turns: save_ms, load_ms, copy_ms (std::memcpy
// into memory that was written before), lend_ms (load() out of memory whose blocks are not copied), and save_speed and load_speed, which are
// copy_ms over the others; bytes of the session.
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "kvc/kvc.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/session.hpp"
#include "support/sequence.hpp"

namespace {

/// Of the processor: another process that takes the core does not count.
double now() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}
template <class Call>
double seconds_of(Call call) {
  const double begin = now();
  call();
  return now() - begin;
}
double median(std::vector<double> times) {
  std::ranges::nth_element(times, times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2));
  return times[times.size() / 2];
}

/// SmolLM2-135M's shape.
void session(benchmark::State& state, const std::string& text, std::size_t tokens) {
  const kvc::CacheShape shape{.layers = 30, .query_heads = 9, .kv_heads = 3, .head_dim = 64};
  const auto policy = kvc::AnyPolicy::parse(text);
  kvc::KVCache cache(shape, policy), loaded(shape, policy);
  const bench::Sequence sequence(shape, 1024);
  for (std::size_t at = 0; at < tokens; at += 1024)
    for (std::size_t layer = 0; layer < shape.layers; ++layer)
      cache.prefill(layer, sequence.tokens(0, std::min<std::size_t>(1024, tokens - at)), {}, at + 1024 >= tokens);

  std::vector<std::byte> memory, copy;
  std::span<std::byte> bytes;
  kvc::save(cache, [&](std::span<const std::byte> more) {
    memory.insert(memory.end(), more.begin(), more.end());
    return true;
  });
  copy = memory;
  {  // where blocks can be lent
    const std::size_t size = memory.size(), alignment = kvc::SessionInMemory::Alignment;
    memory.resize(size + alignment);
    const std::size_t behind = reinterpret_cast<std::uintptr_t>(memory.data()) % alignment;
    bytes = std::span(memory).subspan(behind == 0 ? 0 : alignment - behind, size);
  }
  std::vector<double> saves, loads, lends, copies;
  for (auto _ : state) {
    std::byte* to = bytes.data();
    saves.push_back(seconds_of([&] {
      kvc::save(cache, [&](std::span<const std::byte> more) {
        std::memcpy(to, more.data(), more.size());
        to += more.size();
        return true;
      });
    }));
    const std::byte* from = bytes.data();
    loads.push_back(seconds_of([&] {
      kvc::load(loaded, [&](std::span<std::byte> room) {
        std::memcpy(room.data(), from, room.size());
        from += room.size();
        return room.size();
      });
    }));
    lends.push_back(seconds_of([&] { kvc::load(loaded, kvc::SessionInMemory{.bytes = bytes}); }));
    loaded.clear();  // the next save writes where its blocks lie
    copies.push_back(seconds_of([&] { std::memcpy(copy.data(), bytes.data(), bytes.size()); }));
    benchmark::DoNotOptimize(copy.data());
    state.SetIterationTime(saves.back());
  }
  state.counters["bytes"] = static_cast<double>(bytes.size());
  state.counters["save_ms"] = median(saves) * 1e3;
  state.counters["load_ms"] = median(loads) * 1e3;
  state.counters["lend_ms"] = median(lends) * 1e3;
  state.counters["copy_ms"] = median(copies) * 1e3;
  state.counters["save_speed"] = median(copies) / median(saves);
  state.counters["load_speed"] = median(copies) / median(loads);
}

const int registered = [] {
  for (const char* policy : {"full", "full:type=f32", "kivi:bits=4", "kivi:bits=2", "snapkv:budget=0.25 | kivi:bits=4",
                             "streaming_llm:budget=1024"})
    benchmark::RegisterBenchmark((std::string("session/") + policy + "/n:7000").c_str(), session, policy, 7000)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  return 0;
}();

}  // namespace

BENCHMARK_MAIN();
