#include "support/read_bandwidth.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <vector>

#include "kvc/storage/arena.hpp"
#include "kvc/thread_pool.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bench {
namespace {

constexpr std::size_t Step = 512;  // bytes that one turn of the loop reads: eight lines

#if defined(__x86_64__)
__attribute__((target("avx512f"))) std::uint64_t read_wide(const std::byte* data, std::size_t bytes) {
  constexpr std::size_t Ahead = 4096;
  __m512i sums[8] = {};
  for (std::size_t i = 0; i < bytes; i += Step) {
#pragma GCC unroll 8
    for (std::size_t line = 0; line < 8; ++line) {
      const std::byte* at = data + i + line * 64;
      _mm_prefetch(reinterpret_cast<const char*>(at + Ahead), _MM_HINT_T0);
      sums[line] = _mm512_add_epi64(sums[line], _mm512_load_si512(at));
    }
  }
  std::uint64_t total = 0;
  for (const __m512i& sum : sums) {
    std::uint64_t lanes[8];
    std::memcpy(lanes, &sum, sizeof(lanes));
    for (const std::uint64_t lane : lanes) total += lane;
  }
  return total;
}
#endif

std::uint64_t read_plain(const std::byte* data, std::size_t bytes) {
  std::uint64_t sums[Step / 8] = {};
  for (std::size_t i = 0; i < bytes; i += Step) {
    std::uint64_t words[Step / 8];
    std::memcpy(words, data + i, Step);
    for (std::size_t w = 0; w < Step / 8; ++w) sums[w] += words[w];
  }
  std::uint64_t total = 0;
  for (const std::uint64_t sum : sums) total += sum;
  return total;
}

std::uint64_t read(const std::byte* data, std::size_t bytes) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return read_wide(data, bytes);
#endif
  return read_plain(data, bytes);
}

}  // namespace

double read_bandwidth(std::size_t bytes, std::size_t threads) {
  using Clock = std::chrono::steady_clock;
  kvc::Arena arena;  // huge pages, as the caches have them
  const std::size_t part = bytes / threads / Step * Step;
  std::vector<std::byte*> parts;
  for (std::size_t t = 0; t < threads; ++t) {
    parts.push_back(static_cast<std::byte*>(arena.allocate(part + 8192, 64)));  // the prefetch runs past the end
    std::memset(parts.back(), static_cast<int>(t + 1), part + 8192);
  }
  // Small buffers are read often enough for the clock to see them.
  const std::size_t repeats = std::max<std::size_t>(1, (std::size_t{64} << 20) / std::max<std::size_t>(1, bytes));
  kvc::ThreadPool pool(threads);
  std::vector<std::uint64_t> sinks(threads);
  std::vector<double> rates;
  for (int pass = 0; pass < 8; ++pass) {  // the first one warms up
    const auto begin = Clock::now();
    pool.parallel_for(threads, [&](std::size_t t) {
      for (std::size_t i = 0; i < repeats; ++i) sinks[t] += read(parts[t], part);
    });
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (pass > 0) rates.push_back(static_cast<double>(part * threads * repeats) / seconds);
  }
  for (std::size_t t = 0; t < threads; ++t) {
    volatile std::uint64_t keep = sinks[t];
    static_cast<void>(keep);
    arena.deallocate(parts[t], part + 8192, 64);
  }
  std::ranges::nth_element(rates, rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2));
  return rates[rates.size() / 2];
}

}  // namespace bench
