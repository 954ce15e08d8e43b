// The facade in AVX2 + FMA + F16C: eight lanes. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

using Vector = __m256;
using Words = __m256i;
inline constexpr std::size_t Width = 8;
inline constexpr std::size_t Registers = 16;
inline constexpr bool Specialised = true;
namespace narrower = KVC_TARGET;
inline constexpr bool HasNarrowerTarget = false;

KVC_ALWAYS_INLINE __m128i* as_words(void* p) {
  return static_cast<__m128i*>(p);
}
KVC_ALWAYS_INLINE const __m128i* as_words(const void* p) {
  return static_cast<const __m128i*>(p);
}
/// All ones in the first `count` lanes.
KVC_ALWAYS_INLINE __m256i first_lanes(std::size_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

KVC_ALWAYS_INLINE Words words(std::uint32_t x) {
  return _mm256_set1_epi32(static_cast<int>(x));
}
KVC_ALWAYS_INLINE Words bits_of(Vector a) {
  return _mm256_castps_si256(a);
}
KVC_ALWAYS_INLINE Vector float_of(Words a) {
  return _mm256_castsi256_ps(a);
}

KVC_ALWAYS_INLINE Vector set(float x) {
  return _mm256_set1_ps(x);
}
KVC_ALWAYS_INLINE Vector zero() {
  return _mm256_setzero_ps();
}
KVC_ALWAYS_INLINE Vector load(const float* p) {
  return _mm256_loadu_ps(p);
}
KVC_ALWAYS_INLINE void store(float* p, Vector a) {
  _mm256_storeu_ps(p, a);
}
KVC_ALWAYS_INLINE Vector load_partial(const float* p, std::size_t count) {
  return _mm256_maskload_ps(p, first_lanes(count));
}
KVC_ALWAYS_INLINE void store_partial(float* p, Vector a, std::size_t count) {
  _mm256_maskstore_ps(p, first_lanes(count), a);
}

KVC_ALWAYS_INLINE Vector add(Vector a, Vector b) {
  return _mm256_add_ps(a, b);
}
KVC_ALWAYS_INLINE Vector subtract(Vector a, Vector b) {
  return _mm256_sub_ps(a, b);
}
KVC_ALWAYS_INLINE Vector multiply(Vector a, Vector b) {
  return _mm256_mul_ps(a, b);
}
KVC_ALWAYS_INLINE Vector divide(Vector a, Vector b) {
  return _mm256_div_ps(a, b);
}
KVC_ALWAYS_INLINE Vector fma(Vector a, Vector b, Vector c) {
  return _mm256_fmadd_ps(a, b, c);
}
KVC_ALWAYS_INLINE Vector minimum(Vector a, Vector b) {
  return _mm256_min_ps(a, b);
}
KVC_ALWAYS_INLINE Vector maximum(Vector a, Vector b) {
  return _mm256_max_ps(a, b);
}
KVC_ALWAYS_INLINE Vector select_less(Vector a, Vector b, Vector yes, Vector no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
KVC_ALWAYS_INLINE Vector opaque(Vector a) {
  __asm__("" : "+x"(a));
  return a;
}
KVC_ALWAYS_INLINE Vector round_even(Vector a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
KVC_ALWAYS_INLINE Vector times_power_of_two(Vector a, Vector n) {  // for n integral in [-126, 127]
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
KVC_ALWAYS_INLINE float sum_of(Vector a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
KVC_ALWAYS_INLINE float max_of(Vector a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

KVC_ALWAYS_INLINE Words widen(const std::uint16_t* p) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(as_words(p)));
}
KVC_ALWAYS_INLINE void narrow(std::uint16_t* p, Words a) {
  const __m256i packed = _mm256_packus_epi32(a, a);
  _mm_storeu_si128(as_words(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
KVC_ALWAYS_INLINE Vector load_half(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(as_words(p)));
}
KVC_ALWAYS_INLINE void store_half(std::uint16_t* p, Vector a) {
  _mm_storeu_si128(as_words(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
KVC_ALWAYS_INLINE Vector load_bfloat(const std::uint16_t* p) {
  return float_of(_mm256_slli_epi32(widen(p), 16));
}
KVC_ALWAYS_INLINE void store_bfloat(std::uint16_t* p, Vector a) {  // as kvc::to_bfloat
  const __m256i bits = bits_of(a), high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  narrow(p, _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan));
}

KVC_ALWAYS_INLINE Words load_words(const std::uint32_t* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(p)));
}
KVC_ALWAYS_INLINE void store_words(std::uint32_t* p, Words a) {
  _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(p)), a);
}
template <unsigned Count>
KVC_ALWAYS_INLINE Words shift_right(Words a) {
  return _mm256_srli_epi32(a, Count);
}
template <unsigned Count>
KVC_ALWAYS_INLINE Words shift_left(Words a) {
  return _mm256_slli_epi32(a, Count);
}
KVC_ALWAYS_INLINE Words shift_right_by(Words a, unsigned count) {
  return _mm256_srl_epi32(a, _mm_cvtsi32_si128(static_cast<int>(count)));
}
KVC_ALWAYS_INLINE Words shift_left_by(Words a, unsigned count) {
  return _mm256_sll_epi32(a, _mm_cvtsi32_si128(static_cast<int>(count)));
}
KVC_ALWAYS_INLINE Words bit_and(Words a, Words b) {
  return _mm256_and_si256(a, b);
}
KVC_ALWAYS_INLINE Words bit_or(Words a, Words b) {
  return _mm256_or_si256(a, b);
}
KVC_ALWAYS_INLINE Words signed_max(Words a, Words b) {
  return _mm256_max_epi32(a, b);
}
KVC_ALWAYS_INLINE Vector to_float(Words a) {
  return _mm256_cvtepi32_ps(a);
}
KVC_ALWAYS_INLINE Words to_words(Vector a) {
  return _mm256_cvtps_epi32(a);
}
template <unsigned Bits>
KVC_ALWAYS_INLINE Vector low_codes(Words a) {
  if constexpr (Bits == 2) {  // the permutation reads three index bits: a table of period four needs no mask
    return _mm256_permutevar8x32_ps(_mm256_setr_ps(0, 1, 2, 3, 0, 1, 2, 3), a);
  } else {
    return _mm256_cvtepi32_ps(_mm256_and_si256(a, _mm256_set1_epi32((1 << Bits) - 1)));
  }
}
/// to[16 i + j] = from[stride j + i] for i, j < 16: four squares of eight.
inline void transpose_tile(const float* from, std::size_t stride, float* to) {
  for (std::size_t square = 0; square < 4; ++square) {
    const float* source = from + square / 2 * 8 * stride + square % 2 * 8;
    float* target = to + square % 2 * 8 * 16 + square / 2 * 8;
    __m256 a[8], b[8];
    KVC_UNROLL
    for (std::size_t i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(source + i * stride);
    KVC_UNROLL
    for (std::size_t i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    KVC_UNROLL
    for (std::size_t i = 0; i < 8; i += 4) {
      a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
      a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
      a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
      a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    KVC_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
      _mm256_storeu_ps(target + i * 16, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
      _mm256_storeu_ps(target + (i + 4) * 16, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
