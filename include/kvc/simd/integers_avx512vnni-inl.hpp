// Integer operations in AVX-512 VNNI, on top of the facade of AVX-512. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

using namespace avx512;  // everything in floating point

using Shorts = __m512i;                          // 32 integers of 16 bits
inline constexpr std::size_t ShortsOf64 = 2;     // registers that hold 64 of them
inline constexpr std::size_t IntegerRows = 4;    // rows of a block
inline constexpr std::size_t IntegerTiles = 2;   // tiles of a block
inline constexpr bool MultipliesShorts = false;  // whether two parts are one factor of 16 bits
inline constexpr bool SumsInShorts = false;      // whether add_dot of bytes leaves sums of 16 bits
inline constexpr float CodeOffset = 0;           // that 8-bit codes count from

KVC_ALWAYS_INLINE Vector signed_to_float(Words a) {
  return _mm512_cvtepi32_ps(a);
}
KVC_ALWAYS_INLINE void store_shorts(std::int16_t* p, Shorts a) {
  _mm512_storeu_si512(p, a);
}
KVC_ALWAYS_INLINE Shorts load_shorts(const std::int16_t* p) {
  return _mm512_loadu_si512(p);
}

KVC_ALWAYS_INLINE Shorts max_shorts(Shorts a, Shorts b) {
  return _mm512_max_epi16(a, b);
}
/// 1 / a to within 2^-14 of it.
KVC_ALWAYS_INLINE Vector approximate_inverse(Vector a) {
  return _mm512_rcp14_ps(a);
}

KVC_ALWAYS_INLINE Words add_words(Words a, Words b) {
  return _mm512_add_epi32(a, b);
}
/// 8-bit codes less CodeOffset.
KVC_ALWAYS_INLINE Words less_offset(Words codes) {
  return codes;
}
/// sum += the four products of the bytes of each dword.
template <bool Unsigned, bool>
KVC_ALWAYS_INLINE Words add_dot(Words sum, Words codes, Words coefficients) {
  return Unsigned ? _mm512_dpbusd_epi32(sum, coefficients, codes) : _mm512_dpbusd_epi32(sum, codes, coefficients);
}
KVC_ALWAYS_INLINE Words add_short_sums(Words sum, Words) {
  return sum;
}
template <unsigned Shift>
KVC_ALWAYS_INLINE Words shift_shorts_right(Words a) {
  return _mm512_srli_epi16(a, Shift);
}
/// The sums of the lanes of IntegerRows vectors.
KVC_ALWAYS_INLINE void sums_of(const Vector* x, float* sums) {
  const __m512d low = _mm512_castps_pd(add(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1])));
  const __m512d high = _mm512_castps_pd(add(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3])));
  const Vector quads =
      _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps(quads, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
/// a b / 2^15, rounded.
KVC_ALWAYS_INLINE Shorts multiply_rounded(Shorts a, Shorts b) {
  return _mm512_mulhrs_epi16(a, b);
}

/// Which float of a run of 16 goes where, so that four neighbours meet in one dword as the codes' steps leave them:
/// step k of 4-bit codes has p = 2 byte + k, of 2 and 3 bits p = 4 byte + k.
KVC_ALWAYS_INLINE __m512i run_order(unsigned bits) {
  if (bits == 8) return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  if (bits == 4) return _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}
/// 64 floats, one vector after the other, as integers of 16 bits, in an order of this target's own that store_parts() undoes.
KVC_ALWAYS_INLINE void to_shorts(unsigned bits, const Vector* x, Shorts* shorts) {
  const __m512i order = run_order(bits);
  __m512i rounded[4];
  KVC_UNROLL
  for (std::size_t i = 0; i < 4; ++i) rounded[i] = _mm512_cvtps_epi32(_mm512_permutexvar_ps(order, x[i]));
  shorts[0] = _mm512_packs_epi32(rounded[0], rounded[1]);
  shorts[1] = _mm512_packs_epi32(rounded[2], rounded[3]);
}

/// Stores 64 coefficients, dword by dword in the order of the codes' steps, and adds their sum, in units of their last
/// part, to the lanes of `sum`. Two parts: x = 256 high + low, both signed. One: high alone, x = 256 high, rounded. One
/// unsigned: x = 128 high for 0 <= x.
template <unsigned Parts, bool Unsigned>
KVC_ALWAYS_INLINE Words store_parts(const Shorts* x, std::uint32_t* high, std::uint32_t* low, Words sum) {
  const __m512i by_step = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  if constexpr (Unsigned) {
    const __m512i half = _mm512_set1_epi16(64);
    const __m512i bytes = _mm512_packus_epi16(_mm512_srli_epi16(_mm512_add_epi16(x[0], half), 7),
                                              _mm512_srli_epi16(_mm512_add_epi16(x[1], half), 7));
    store_words(high, _mm512_permutexvar_epi32(by_step, bytes));
    return _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi8(1));
  } else {
    const __m512i half = _mm512_set1_epi16(128);
    const __m512i bytes = _mm512_packs_epi16(_mm512_srai_epi16(_mm512_add_epi16(x[0], half), 8),
                                             _mm512_srai_epi16(_mm512_add_epi16(x[1], half), 8));
    store_words(high, _mm512_permutexvar_epi32(by_step, bytes));
    if constexpr (Parts == 1) return _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), bytes);
    const __m512i mask = _mm512_set1_epi16(255), ones = _mm512_set1_epi16(1);
    store_words(low, _mm512_permutexvar_epi32(
                         by_step, _mm512_packus_epi16(_mm512_and_si512(x[0], mask), _mm512_and_si512(x[1], mask))));
    return _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(sum, x[0], ones), x[1], ones);
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
