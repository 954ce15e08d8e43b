#include "integer_kernels.hpp"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12 reports its own intrinsics (GCC PR 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif

namespace engine::avx512_vnni {

#define ENGINE_INLINE inline __attribute__((always_inline))

/// Rows whose sums fit the registers together.
constexpr std::size_t RowsPerBlock = 8;

/// Four codes of a row for every output.
ENGINE_INLINE __m512i broadcast_codes(const std::int8_t* codes) {
  std::int32_t four;
  std::memcpy(&four, codes, sizeof four);
  return _mm512_set1_epi32(four);
}

ENGINE_INLINE __m512 load_halves(const std::byte* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

/// The unsigned weights of 8 inputs, four to a 32-bit output: even inputs first, as in IntegerRows.
struct EightInputs {
  __m512i even, odd;
};

struct NibbleBlock {
  static constexpr PanelFormat Format = PanelFormat::nibble;
  const std::byte* data;
  __m512 scale, minimum;

  ENGINE_INLINE explicit NibbleBlock(const std::byte* block)
      : data(block + 64), scale(load_halves(block)), minimum(load_halves(block + 32)) {}
  ENGINE_INLINE EightInputs inputs(std::size_t group) const {
    const __m512i words = _mm512_loadu_si512(data + group * 64), mask = _mm512_set1_epi8(15);
    return {_mm512_and_si512(words, mask), _mm512_and_si512(_mm512_srli_epi32(words, 4), mask)};
  }
  ENGINE_INLINE __m512 apply(__m512 products, float row_scale, float row_sum, __m512 total) const {
    const __m512 scaled = _mm512_mul_ps(products, _mm512_set1_ps(row_scale));
    return _mm512_fmadd_ps(minimum, _mm512_set1_ps(row_sum), _mm512_fmadd_ps(scaled, scale, total));
  }
};

/// Signed weights are shifted by 128, because one factor of the dot product is unsigned; apply() takes it back.
struct ByteBlock {
  static constexpr PanelFormat Format = PanelFormat::byte;
  const std::byte* data;
  __m512 scale;

  ENGINE_INLINE explicit ByteBlock(const std::byte* block) : data(block + 32), scale(load_halves(block)) {}
  /// The panel has 16 outputs of one input side by side: pick inputs 0 2 4 6 (1 3 5 7), four outputs to a 128-bit part,
  /// then transpose the 4 x 4 bytes of each part.
  ENGINE_INLINE EightInputs inputs(std::size_t group) const {
    const __m512i flip = _mm512_set1_epi8(-128);
    const __m512i first = _mm512_xor_si512(_mm512_loadu_si512(data + group * 128), flip);
    const __m512i second = _mm512_xor_si512(_mm512_loadu_si512(data + group * 128 + 64), flip);
    const __m512i even = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i odd = _mm512_setr_epi32(4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31);
    const __m512i transpose =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return {_mm512_shuffle_epi8(_mm512_permutex2var_epi32(first, even, second), transpose),
            _mm512_shuffle_epi8(_mm512_permutex2var_epi32(first, odd, second), transpose)};
  }
  ENGINE_INLINE __m512 apply(__m512 products, float row_scale, float row_sum, __m512 total) const {
    const __m512 signed_products =
        _mm512_fmadd_ps(products, _mm512_set1_ps(row_scale), _mm512_set1_ps(-128.0f * row_sum));
    return _mm512_fmadd_ps(signed_products, scale, total);
  }
};

template <class Block, std::size_t Rows>
void multiply_rows(const std::byte* panel, std::size_t blocks, const IntegerRows& rows, float* out,
                   std::size_t out_stride, std::size_t outputs) {
  const std::size_t inputs = blocks * BlockInputs;
  __m512 totals[Rows];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < Rows; ++r) totals[r] = _mm512_setzero_ps();
  for (std::size_t b = 0; b < blocks; ++b) {
    const Block block(panel + b * block_bytes(Block::Format));
    const std::int8_t* codes = rows.codes + b * BlockInputs;
    __m512i products[Rows];
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) products[r] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (std::size_t group = 0; group < BlockInputs / 8; ++group) {
      const EightInputs weights = block.inputs(group);
#pragma GCC unroll 8
      for (std::size_t r = 0; r < Rows; ++r) {
        const std::int8_t* row = codes + r * inputs + group * 8;
        products[r] = _mm512_dpbusd_epi32(products[r], weights.even, broadcast_codes(row));
        products[r] = _mm512_dpbusd_epi32(products[r], weights.odd, broadcast_codes(row + 4));
      }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r)
      totals[r] = block.apply(_mm512_cvtepi32_ps(products[r]), rows.scales[r * blocks + b], rows.sums[r * blocks + b],
                              totals[r]);
  }
  const __mmask16 existing = static_cast<__mmask16>(outputs >= PanelOutputs ? 0xFFFFu : (1u << outputs) - 1u);
  for (std::size_t r = 0; r < Rows; ++r) _mm512_mask_storeu_ps(out + r * out_stride, existing, totals[r]);
}

template <class Block, std::size_t Rows = RowsPerBlock>
void multiply_all_rows(const std::byte* panel, std::size_t blocks, IntegerRows rows, float* out, std::size_t out_stride,
                       std::size_t outputs) {
  while (rows.count >= Rows) {
    multiply_rows<Block, Rows>(panel, blocks, rows, out, out_stride, outputs);
    rows.codes += Rows * blocks * BlockInputs;
    rows.scales += Rows * blocks;
    rows.sums += Rows * blocks;
    rows.count -= Rows;
    out += Rows * out_stride;
  }
  if constexpr (Rows > 1)
    if (rows.count > 0) multiply_all_rows<Block, Rows - 1>(panel, blocks, rows, out, out_stride, outputs);
}

inline void multiply_panel(PanelFormat format, const std::byte* panel, std::size_t blocks, const IntegerRows& rows,
                           float* out, std::size_t out_stride, std::size_t outputs) {
  if (format == PanelFormat::nibble)
    multiply_all_rows<NibbleBlock>(panel, blocks, rows, out, out_stride, outputs);
  else
    multiply_all_rows<ByteBlock>(panel, blocks, rows, out, out_stride, outputs);
}

inline void quantize(const float* x, std::size_t blocks, std::int8_t* codes, float* scales, float* sums) {
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  for (std::size_t b = 0; b < blocks; ++b, x += BlockInputs, codes += BlockInputs) {
    const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    const __m512i low_codes = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
    const __m512i high_codes = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
    const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low_codes, high_codes));
    scales[b] = largest / 127.0f;
    sums[b] = scales[b] * static_cast<float>(sum);
    auto store = [&](std::int8_t * to, __m512i wide) __attribute__((always_inline)) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(wide), order));
    };
    store(codes, low_codes);
    store(codes + 16, high_codes);
  }
}

constexpr IntegerKernels Kernels = {&quantize, &multiply_panel};

}  // namespace engine::avx512_vnni

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif
#endif

namespace engine {

const IntegerKernels* integer_kernels() {
#if defined(__x86_64__)
  static const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512vnni");
  if (runs) return &avx512_vnni::Kernels;
#endif
  return nullptr;
}

}  // namespace engine
