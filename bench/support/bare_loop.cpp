#include "support/bare_loop.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if !defined(__clang__)
// g++ 12 sees its own intrinsics' deliberately undefined operands as uninitialised once they are inlined (PR 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Loops that do what no kernel can avoid: load an element's bytes, unpack them, multiply them for every row. Written apart
// from the library, so that a slow kernel cannot lower its own bar.
namespace bench {
namespace {

/// What a loop works on: `lines` lines of 64 bytes of elements, and a coefficient for every row and step.
struct Work {
  const std::byte* data;
  std::size_t lines;
  const std::byte* coefficients;
};
using Loop = void (*)(const Work&, float* out);

#if defined(__x86_64__)

#define BENCH_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")))
#define BENCH_AVX2 __attribute__((target("avx2,fma,f16c")))
/// As many vectors side by side as leave registers for the rows' sums.
constexpr std::size_t vectors_side_by_side(std::size_t rows, std::size_t registers) {
  return rows * 4 <= registers - 6 ? 4 : rows * 2 <= registers - 6 ? 2 : 1;
}

/// 16 lanes a vector; halves and floats by multiply-add with broadcast coefficients.
template <Operand Kind, bool Bfloat, std::size_t Rows>
BENCH_AVX512 void dense512(const Work& work, float* out) {
  constexpr std::size_t Side = vectors_side_by_side(Rows, 32), Bytes = Kind == Operand::f32 ? 64 : 32;
  __m512 sums[Rows][Side] = {};
  const auto* coefficients = reinterpret_cast<const float*>(work.coefficients);
  const std::size_t vectors = work.lines * 64 / Bytes;
  for (std::size_t v = 0; v + Side <= vectors; v += Side) {
#pragma GCC unroll 4
    for (std::size_t s = 0; s < Side; ++s) {
      const std::byte* at = work.data + (v + s) * Bytes;
      __m512 x;
      if constexpr (Kind == Operand::f32)
        x = _mm512_loadu_ps(at);
      else if constexpr (Bfloat)
        x = _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))), 16));
      else
        x = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
#pragma GCC unroll 8
      for (std::size_t r = 0; r < Rows; ++r)
        sums[r][s] = _mm512_fmadd_ps(_mm512_set1_ps(coefficients[r * 64 + (v + s) % 64]), x, sums[r][s]);
    }
  }
  for (auto& row : sums)
    for (const __m512& sum : row) out[0] += _mm512_cvtss_f32(sum);
}

template <Operand Kind, bool Bfloat, std::size_t Rows>
BENCH_AVX2 void dense256(const Work& work, float* out) {
  constexpr std::size_t Side = vectors_side_by_side(Rows, 16), Bytes = Kind == Operand::f32 ? 32 : 16;
  __m256 sums[Rows][Side] = {};
  const auto* coefficients = reinterpret_cast<const float*>(work.coefficients);
  const std::size_t vectors = work.lines * 64 / Bytes;
  for (std::size_t v = 0; v + Side <= vectors; v += Side) {
#pragma GCC unroll 4
    for (std::size_t s = 0; s < Side; ++s) {
      const std::byte* at = work.data + (v + s) * Bytes;
      __m256 x;
      if constexpr (Kind == Operand::f32)
        x = _mm256_loadu_ps(reinterpret_cast<const float*>(at));
      else if constexpr (Bfloat)
        x = _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))), 16));
      else
        x = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#pragma GCC unroll 8
      for (std::size_t r = 0; r < Rows; ++r)
        sums[r][s] = _mm256_fmadd_ps(_mm256_set1_ps(coefficients[r * 64 + (v + s) % 64]), x, sums[r][s]);
    }
  }
  for (auto& row : sums)
    for (const __m256& sum : row) out[0] += _mm256_cvtss_f32(sum);
}

/// Dwords of packed codes, shifted and masked to bytes; four codes of a lane per multiplication.
template <unsigned Bits, std::size_t Rows>
BENCH_AVX512 void integers512(const Work& work, float* out) {
  constexpr std::size_t Side = vectors_side_by_side(Rows, 31), Shifts = Bits == 3 ? 4 : 8 / Bits;
  __m512i sums[Rows][Side] = {};
  const auto* coefficients = reinterpret_cast<const std::uint32_t*>(work.coefficients);
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1u << Bits) - 1));
  for (std::size_t v = 0; v + Side <= work.lines; v += Side) {
#pragma GCC unroll 4
    for (std::size_t shift = 0; shift < Shifts; ++shift) {
#pragma GCC unroll 4
      for (std::size_t s = 0; s < Side; ++s) {
        __m512i x = _mm512_loadu_si512(work.data + (v + s) * 64);
        if (shift != 0) x = _mm512_srli_epi16(x, static_cast<unsigned>(shift * Bits));
        if (Bits != 8) x = _mm512_and_si512(x, mask);
#pragma GCC unroll 16
        for (std::size_t r = 0; r < Rows; ++r)
          sums[r][s] = _mm512_dpbusd_epi32(
              sums[r][s], x, _mm512_set1_epi32(static_cast<int>(coefficients[r * 64 + (v * 4 + shift) % 64])));
      }
    }
  }
  for (auto& row : sums)
    for (const __m512i& sum : row) out[0] += static_cast<float>(_mm_cvtsi128_si32(_mm512_castsi512_si128(sum)));
}

/// The same in AVX2, which sums two products of bytes in 16 bits: widened before they overflow.
template <unsigned Bits, std::size_t Rows>
BENCH_AVX2 void bytes256(const Work& work, float* out) {
  constexpr std::size_t Side = vectors_side_by_side(Rows, 15), Shifts = Bits == 3 ? 4 : 8 / Bits;
  constexpr std::size_t Turns = 32767 / (2 * ((1u << Bits) - 1) * 128) / Shifts;
  __m256i sums[Rows][Side] = {};
  const auto* coefficients = reinterpret_cast<const std::uint32_t*>(work.coefficients);
  const __m256i mask = _mm256_set1_epi8(static_cast<char>((1u << Bits) - 1)), ones = _mm256_set1_epi16(1);
  for (std::size_t v = 0; v + Side <= work.lines * 2;) {
    __m256i shorts[Rows][Side] = {};
    for (std::size_t turn = 0; turn < Turns && v + Side <= work.lines * 2; ++turn, v += Side) {
#pragma GCC unroll 4
      for (std::size_t shift = 0; shift < Shifts; ++shift) {
#pragma GCC unroll 4
        for (std::size_t s = 0; s < Side; ++s) {
          __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(work.data + (v + s) * 32));
          if (shift != 0) x = _mm256_srli_epi16(x, static_cast<int>(shift * Bits));
          x = _mm256_and_si256(x, mask);
#pragma GCC unroll 16
          for (std::size_t r = 0; r < Rows; ++r) {
            const __m256i q = _mm256_set1_epi32(static_cast<int>(coefficients[r * 64 + (v * 4 + shift) % 64]));
            shorts[r][s] = _mm256_add_epi16(shorts[r][s], _mm256_maddubs_epi16(x, q));
            __asm__("" : "+x"(shorts[r][s]));  // no tree of additions, which would need more registers
          }
        }
      }
    }
#pragma GCC unroll 16
    for (std::size_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (std::size_t s = 0; s < Side; ++s)
        sums[r][s] = _mm256_add_epi32(sums[r][s], _mm256_madd_epi16(shorts[r][s], ones));
  }
  for (auto& row : sums)
    for (const __m256i& sum : row) out[0] += static_cast<float>(_mm_cvtsi128_si32(_mm256_castsi256_si128(sum)));
}

/// Codes spread to 16 bits; two of a lane per multiplication with coefficients of 16 bits.
template <unsigned Bits, std::size_t Rows>
BENCH_AVX2 void shorts256(const Work& work, float* out) {
  constexpr std::size_t Side = vectors_side_by_side(Rows, 15), Shifts = Bits == 3 ? 8 : 16 / Bits;
  __m256i sums[Rows][Side] = {};
  const auto* coefficients = reinterpret_cast<const std::uint32_t*>(work.coefficients);
  const __m256i mask = _mm256_set1_epi16((1 << Bits) - 1);
  for (std::size_t v = 0; v + Side <= work.lines * 2; v += Side) {
#pragma GCC unroll 8
    for (std::size_t shift = 0; shift < Shifts; ++shift) {
      const std::size_t places = Bits == 3 ? shift * 2 : shift * Bits;
#pragma GCC unroll 4
      for (std::size_t s = 0; s < Side; ++s) {
        __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(work.data + (v + s) * 32));
        if (places != 0) x = _mm256_srli_epi16(x, static_cast<int>(places));
        if (places + Bits < 16) x = _mm256_and_si256(x, mask);
#pragma GCC unroll 16
        for (std::size_t r = 0; r < Rows; ++r) {
          const __m256i q = _mm256_set1_epi32(static_cast<int>(coefficients[r * 64 + (v * 4 + shift) % 64]));
          sums[r][s] = _mm256_add_epi32(sums[r][s], _mm256_madd_epi16(x, q));
          __asm__("" : "+x"(sums[r][s]));
        }
      }
    }
  }
  for (auto& row : sums)
    for (const __m256i& sum : row) out[0] += static_cast<float>(_mm_cvtsi128_si32(_mm256_castsi256_si128(sum)));
}

/// Codes become floats, one multiply-add per row: the exact arithmetic.
template <unsigned Bits, std::size_t Rows>
BENCH_AVX512 void codes512(const Work& work, float* out) {
  constexpr std::size_t Side = vectors_side_by_side(Rows, 30), Shifts = Bits == 3 ? 10 : 32 / Bits;
  __m512 sums[Rows][Side] = {};
  const auto* coefficients = reinterpret_cast<const float*>(work.coefficients);
  const __m512i mask = _mm512_set1_epi32(static_cast<int>((1u << Bits) - 1));
  for (std::size_t v = 0; v + Side <= work.lines; v += Side) {
#pragma GCC unroll 16
    for (std::size_t shift = 0; shift < Shifts; ++shift) {
#pragma GCC unroll 4
      for (std::size_t s = 0; s < Side; ++s) {
        const __m512i dwords = _mm512_loadu_si512(work.data + (v + s) * 64);
        const __m512i code = _mm512_and_si512(_mm512_srli_epi32(dwords, static_cast<unsigned>(shift * Bits)), mask);
        const __m512 x = _mm512_cvtepi32_ps(code);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < Rows; ++r)
          sums[r][s] = _mm512_fmadd_ps(_mm512_set1_ps(coefficients[r * 64 + (v + shift) % 64]), x, sums[r][s]);
      }
    }
  }
  for (auto& row : sums)
    for (const __m512& sum : row) out[0] += _mm512_cvtss_f32(sum);
}

template <unsigned Bits, std::size_t Rows>
BENCH_AVX2 void codes256(const Work& work, float* out) {
  constexpr std::size_t Side = vectors_side_by_side(Rows, 14), Shifts = Bits == 3 ? 10 : 32 / Bits;
  __m256 sums[Rows][Side] = {};
  const auto* coefficients = reinterpret_cast<const float*>(work.coefficients);
  const __m256i mask = _mm256_set1_epi32(static_cast<int>((1u << Bits) - 1));
  for (std::size_t v = 0; v + Side <= work.lines * 2; v += Side) {
#pragma GCC unroll 16
    for (std::size_t shift = 0; shift < Shifts; ++shift) {
#pragma GCC unroll 4
      for (std::size_t s = 0; s < Side; ++s) {
        const __m256i dwords = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(work.data + (v + s) * 32));
        const __m256i code = _mm256_and_si256(_mm256_srli_epi32(dwords, static_cast<int>(shift * Bits)), mask);
        const __m256 x = _mm256_cvtepi32_ps(code);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < Rows; ++r)
          sums[r][s] = _mm256_fmadd_ps(_mm256_set1_ps(coefficients[r * 64 + (v + shift) % 64]), x, sums[r][s]);
      }
    }
  }
  for (auto& row : sums)
    for (const __m256& sum : row) out[0] += _mm256_cvtss_f32(sum);
}

/// The loop for a number of rows that is known at run time.
template <template <std::size_t> class Make, std::size_t... Counts>
Loop with_rows(std::size_t rows, std::index_sequence<Counts...>) {
  Loop found = nullptr;
  ((rows == Counts + 1 ? void(found = Make<Counts + 1>::get()) : void()), ...);
  return found;
}
#define BENCH_LOOP(name, function)                    \
  template <std::size_t Rows>                         \
  struct name {                                       \
    static constexpr Loop get() { return &function; } \
  };

BENCH_LOOP(F32Wide, (dense512<Operand::f32, false, Rows>))
BENCH_LOOP(F16Wide, (dense512<Operand::half, false, Rows>))
BENCH_LOOP(Bf16Wide, (dense512<Operand::half, true, Rows>))
BENCH_LOOP(F32Narrow, (dense256<Operand::f32, false, Rows>))
BENCH_LOOP(F16Narrow, (dense256<Operand::half, false, Rows>))
BENCH_LOOP(Bf16Narrow, (dense256<Operand::half, true, Rows>))
template <unsigned Bits>
struct OfBits {
  BENCH_LOOP(IntegersWide, (integers512<Bits, Rows>))
  BENCH_LOOP(BytesNarrow, (bytes256<Bits, Rows>))
  BENCH_LOOP(ShortsNarrow, (shorts256<Bits, Rows>))
  BENCH_LOOP(CodesWide, (codes512<Bits, Rows>))
  BENCH_LOOP(CodesNarrow, (codes256<Bits, Rows>))

  static Loop find(const BareLoop& loop, bool wide) {
    if (loop.operand == Operand::integers) {
      if (wide) return loop.shorts ? nullptr : with_rows<IntegersWide>(loop.rows, std::make_index_sequence<16>());
      if (loop.shorts) return with_rows<ShortsNarrow>(loop.rows, std::make_index_sequence<8>());
      if constexpr (Bits < 8) return with_rows<BytesNarrow>(loop.rows, std::make_index_sequence<8>());
      return nullptr;  // two products of 8 bits do not fit 16
    }
    return wide ? with_rows<CodesWide>(loop.rows, std::make_index_sequence<8>())
                : with_rows<CodesNarrow>(loop.rows, std::make_index_sequence<8>());
  }
};

Loop find_loop(bool wide, const BareLoop& loop) {
  constexpr auto Rows = std::make_index_sequence<8>();
  switch (loop.operand) {
    case Operand::f32:
      return wide ? with_rows<F32Wide>(loop.rows, Rows) : with_rows<F32Narrow>(loop.rows, Rows);
    case Operand::half:
      if (loop.bfloat) return wide ? with_rows<Bf16Wide>(loop.rows, Rows) : with_rows<Bf16Narrow>(loop.rows, Rows);
      return wide ? with_rows<F16Wide>(loop.rows, Rows) : with_rows<F16Narrow>(loop.rows, Rows);
    default:
      return loop.bits == 8   ? OfBits<8>::find(loop, wide)
             : loop.bits == 4 ? OfBits<4>::find(loop, wide)
             : loop.bits == 3 ? OfBits<3>::find(loop, wide)
                              : OfBits<2>::find(loop, wide);
  }
}

#endif

/// Elements per second of one loop: the best of several runs, because a bound is wanted.
double measure(Loop loop, double elements_per_line) {
  using Clock = std::chrono::steady_clock;
  constexpr std::size_t Lines = 256, Repeats = 200;  // 16 KiB of elements
  std::vector<std::byte> data(Lines * 64 + 64), coefficients(16 * 64 * sizeof(float) + 64);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 37 % 61);
  const Work work{data.data() + (64 - reinterpret_cast<std::uintptr_t>(data.data()) % 64), Lines, coefficients.data()};
  double best = 0;
  for (int run = 0; run < 15; ++run) {
    float out = 0;
    const auto begin = Clock::now();
    for (std::size_t i = 0; i < Repeats; ++i) loop(work, &out);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    volatile float keep = out;
    static_cast<void>(keep);
    best = std::max(best, static_cast<double>(Lines * Repeats) * elements_per_line / seconds);
  }
  return best;
}

}  // namespace

double bare_loop_rate(kvc::Isa isa, const BareLoop& loop) {
#if defined(__x86_64__)
  if (isa == kvc::Isa::portable) return 0;
  const double bits = loop.operand == Operand::f32 ? 32 : loop.operand == Operand::half ? 16 : loop.bits;
  double best = 0;
  // The narrower loop is the better one for some formats, and a kernel may use it too.
  for (const bool wide : {false, true}) {
    const bool needs_vnni = wide && loop.operand == Operand::integers;
    if (wide && (isa == kvc::Isa::avx2 || (isa == kvc::Isa::avx512 && needs_vnni))) continue;
    const Loop found = find_loop(wide, loop);
    // Three bits are walked as ten codes a dword, or four twos a byte: the elements that such a walk multiplies.
    const double shifts = loop.operand == Operand::integers ? 32 : loop.bits == 3 ? 10.0 : 32.0 / bits;
    const double per_line = loop.operand == Operand::f32 || loop.operand == Operand::half ? 512 / bits
                            : loop.operand == Operand::integers ? (loop.bits == 3 ? 256 : 512 / bits)
                                                                : 16 * shifts;
    if (found) best = std::max(best, measure(found, per_line));
  }
  return best;
#else
  static_cast<void>(isa);
  static_cast<void>(loop);
  return 0;
#endif
}

}  // namespace bench
