#include "support/multiply_add_peak.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace bench {
namespace {

constexpr std::size_t Chains = 12;  // independent sums: more than latency times width of any core
constexpr std::size_t Turns = 100'000;

// Sums in registers, and nothing else. A function per instruction set, because only there the compiler may use it.
#define BENCH_MULTIPLY_ADDS(name, features, Vector, multiply_add, set)                           \
  features float name() {                                                                        \
    Vector sums[Chains] = {};                                                                    \
    const Vector factor = set(1.0000001f), term = set(1e-9f);                                    \
    for (std::size_t turn = 0; turn < Turns; ++turn) {                                           \
      _Pragma("GCC unroll 12") for (std::size_t i = 0; i < Chains; ++i) {                        \
        sums[i] = multiply_add(sums[i], factor, term);                                           \
        __asm__ volatile("" : "+" BENCH_REGISTER(sums[i]));                                      \
      }                                                                                          \
    }                                                                                            \
    Vector whole = sums[0]; /* by index only: an array whose address is taken lives in memory */ \
    _Pragma("GCC unroll 12") for (std::size_t i = 1; i < Chains; ++i) whole += sums[i];          \
    float total = 0, lanes[sizeof(Vector) / sizeof(float)];                                      \
    std::memcpy(lanes, &whole, sizeof(lanes));                                                   \
    for (const float lane : lanes) total += lane;                                                \
    return total;                                                                                \
  }

#if defined(__x86_64__)
#define BENCH_REGISTER "v"
BENCH_MULTIPLY_ADDS(adds_avx512, __attribute__((target("avx512f"))), __m512, _mm512_fmadd_ps, _mm512_set1_ps)
#undef BENCH_REGISTER
#define BENCH_REGISTER "x"
BENCH_MULTIPLY_ADDS(adds_avx2, __attribute__((target("avx2,fma"))), __m256, _mm256_fmadd_ps, _mm256_set1_ps)
__m128 multiply_then_add(__m128 a, __m128 b, __m128 c) {
  return _mm_add_ps(_mm_mul_ps(a, b), c);
}
BENCH_MULTIPLY_ADDS(adds_plain, , __m128, multiply_then_add, _mm_set1_ps)
#elif defined(__aarch64__)
#define BENCH_REGISTER "w"
float32x4_t multiply_add(float32x4_t a, float32x4_t b, float32x4_t c) {
  return vfmaq_f32(c, a, b);
}
BENCH_MULTIPLY_ADDS(adds_plain, , float32x4_t, multiply_add, vdupq_n_f32)
#else
float adds_plain() {
  return 0;
}
#endif

}  // namespace

double multiply_add_peak(kvc::Isa isa) {
  using Clock = std::chrono::steady_clock;
  float (*loop)() = adds_plain;
  std::size_t lanes = 4;
#if defined(__x86_64__)
  if (isa == kvc::Isa::avx2) {
    loop = adds_avx2;
    lanes = 8;
  } else if (isa != kvc::Isa::portable) {
    loop = adds_avx512;
    lanes = 16;
  }
#else
  static_cast<void>(isa);
#endif
  double best = 0;
  for (int run = 0; run < 20; ++run) {
    const auto begin = Clock::now();
    volatile const float keep = loop();
    static_cast<void>(keep);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::max(best, static_cast<double>(Turns * Chains * lanes) / seconds);
  }
  return best;
}

}  // namespace bench
