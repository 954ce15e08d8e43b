// The facade in AVX-512 F, BW, DQ, VL: sixteen lanes. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

using Vector = __m512;
using Words = __m512i;
inline constexpr std::size_t Width = 16;
inline constexpr std::size_t Registers = 32;
inline constexpr bool Specialised = true;
namespace narrower = avx2;  // has the same results where it is faster
inline constexpr bool HasNarrowerTarget = true;

KVC_ALWAYS_INLINE __mmask16 first_lanes(std::size_t count) {
  return static_cast<__mmask16>((1u << count) - 1u);
}

KVC_ALWAYS_INLINE Words words(std::uint32_t x) {
  return _mm512_set1_epi32(static_cast<int>(x));
}
KVC_ALWAYS_INLINE Words bits_of(Vector a) {
  return _mm512_castps_si512(a);
}
KVC_ALWAYS_INLINE Vector float_of(Words a) {
  return _mm512_castsi512_ps(a);
}

KVC_ALWAYS_INLINE Vector set(float x) {
  return _mm512_set1_ps(x);
}
KVC_ALWAYS_INLINE Vector zero() {
  return _mm512_setzero_ps();
}
KVC_ALWAYS_INLINE Vector load(const float* p) {
  return _mm512_loadu_ps(p);
}
KVC_ALWAYS_INLINE void store(float* p, Vector a) {
  _mm512_storeu_ps(p, a);
}
KVC_ALWAYS_INLINE Vector load_partial(const float* p, std::size_t count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), p);
}
KVC_ALWAYS_INLINE void store_partial(float* p, Vector a, std::size_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), a);
}

KVC_ALWAYS_INLINE Vector add(Vector a, Vector b) {
  return _mm512_add_ps(a, b);
}
KVC_ALWAYS_INLINE Vector subtract(Vector a, Vector b) {
  return _mm512_sub_ps(a, b);
}
KVC_ALWAYS_INLINE Vector multiply(Vector a, Vector b) {
  return _mm512_mul_ps(a, b);
}
KVC_ALWAYS_INLINE Vector divide(Vector a, Vector b) {
  return _mm512_div_ps(a, b);
}
KVC_ALWAYS_INLINE Vector fma(Vector a, Vector b, Vector c) {
  return _mm512_fmadd_ps(a, b, c);
}
KVC_ALWAYS_INLINE Vector minimum(Vector a, Vector b) {
  return _mm512_min_ps(a, b);
}
KVC_ALWAYS_INLINE Vector maximum(Vector a, Vector b) {
  return _mm512_max_ps(a, b);
}
KVC_ALWAYS_INLINE Vector select_less(Vector a, Vector b, Vector yes, Vector no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
KVC_ALWAYS_INLINE Vector opaque(Vector a) {
  __asm__("" : "+v"(a));
  return a;
}
KVC_ALWAYS_INLINE Vector round_even(Vector a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
KVC_ALWAYS_INLINE Vector times_power_of_two(Vector a, Vector n) {
  return _mm512_scalef_ps(a, n);
}
KVC_ALWAYS_INLINE float sum_of(Vector a) {
  return _mm512_reduce_add_ps(a);
}
KVC_ALWAYS_INLINE float max_of(Vector a) {
  return _mm512_reduce_max_ps(a);
}

KVC_ALWAYS_INLINE __m256i load_256(const std::uint16_t* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(p)));
}
KVC_ALWAYS_INLINE void store_256(std::uint16_t* p, __m256i a) {
  _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(p)), a);
}
KVC_ALWAYS_INLINE Vector load_half(const std::uint16_t* p) {
  return _mm512_cvtph_ps(load_256(p));
}
KVC_ALWAYS_INLINE void store_half(std::uint16_t* p, Vector a) {
  store_256(p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
KVC_ALWAYS_INLINE Vector load_bfloat(const std::uint16_t* p) {
  return float_of(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_256(p)), 16));
}
KVC_ALWAYS_INLINE void store_bfloat(std::uint16_t* p, Vector a) {  // as kvc::to_bfloat
  const __m512i bits = bits_of(a), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  store_256(p, _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), rounded, quiet)));
}

KVC_ALWAYS_INLINE Words load_words(const std::uint32_t* p) {
  return _mm512_loadu_si512(p);
}
KVC_ALWAYS_INLINE void store_words(std::uint32_t* p, Words a) {
  _mm512_storeu_si512(p, a);
}
template <unsigned Count>
KVC_ALWAYS_INLINE Words shift_right(Words a) {
  return _mm512_srli_epi32(a, Count);
}
template <unsigned Count>
KVC_ALWAYS_INLINE Words shift_left(Words a) {
  return _mm512_slli_epi32(a, Count);
}
KVC_ALWAYS_INLINE Words shift_right_by(Words a, unsigned count) {
  return _mm512_srl_epi32(a, _mm_cvtsi32_si128(static_cast<int>(count)));
}
KVC_ALWAYS_INLINE Words shift_left_by(Words a, unsigned count) {
  return _mm512_sll_epi32(a, _mm_cvtsi32_si128(static_cast<int>(count)));
}
KVC_ALWAYS_INLINE Words bit_and(Words a, Words b) {
  return _mm512_and_si512(a, b);
}
KVC_ALWAYS_INLINE Words bit_or(Words a, Words b) {
  return _mm512_or_si512(a, b);
}
KVC_ALWAYS_INLINE Words signed_max(Words a, Words b) {
  return _mm512_max_epi32(a, b);
}
KVC_ALWAYS_INLINE Vector to_float(Words a) {
  return _mm512_cvtepi32_ps(a);
}
KVC_ALWAYS_INLINE Words to_words(Vector a) {
  return _mm512_cvtps_epi32(a);
}
template <unsigned Bits>
KVC_ALWAYS_INLINE Vector low_codes(Words a) {
  if constexpr (Bits == 2) {  // the permutation reads four index bits: a table of period four needs no mask
    return _mm512_permutexvar_ps(a, _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3));
  } else if constexpr (Bits == 4) {
    return _mm512_permutexvar_ps(a, _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  } else {
    return _mm512_cvtepi32_ps(_mm512_and_si512(a, _mm512_set1_epi32((1 << Bits) - 1)));
  }
}
/// to[16 i + j] = from[stride j + i] for i, j < 16: pairs of rows, then pairs of pairs, then quarters change places.
inline void transpose_tile(const float* from, std::size_t stride, float* to) {
  __m512 a[16], b[16];
  KVC_UNROLL
  for (std::size_t i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * stride);
  KVC_UNROLL
  for (std::size_t i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  KVC_UNROLL
  for (std::size_t i = 0; i < 16; i += 4) {  // now a[i + k]: rows i … i + 3 of columns k, k + 4, k + 8, k + 12
    a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  KVC_UNROLL
  for (std::size_t k = 0; k < 4; ++k) {
    const __m512 low = _mm512_shuffle_f32x4(a[k], a[k + 4], 0x44), high = _mm512_shuffle_f32x4(a[k], a[k + 4], 0xee);
    const __m512 low2 = _mm512_shuffle_f32x4(a[k + 8], a[k + 12], 0x44);
    const __m512 high2 = _mm512_shuffle_f32x4(a[k + 8], a[k + 12], 0xee);
    _mm512_storeu_ps(to + k * 16, _mm512_shuffle_f32x4(low, low2, 0x88));
    _mm512_storeu_ps(to + (k + 4) * 16, _mm512_shuffle_f32x4(low, low2, 0xdd));
    _mm512_storeu_ps(to + (k + 8) * 16, _mm512_shuffle_f32x4(high, high2, 0x88));
    _mm512_storeu_ps(to + (k + 12) * 16, _mm512_shuffle_f32x4(high, high2, 0xdd));
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
