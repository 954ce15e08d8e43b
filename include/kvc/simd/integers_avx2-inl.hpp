// Integer operations in AVX2, on top of its facade. Re-included, no guard.
//
// There is no sum of four products of bytes. Coefficients of 16 bits are multiplied whole by codes spread to 16 bits
// (vpmaddwd: exact; IntegerChunk products of 255 and 32,500 fit 31 bits). Coefficients of one byte are multiplied by bytes
// (vpmaddubsw), with sums of 16 bits for as long as they cannot overflow.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

using Shorts = __m256i;                         // 16 integers of 16 bits
inline constexpr std::size_t ShortsOf64 = 4;    // registers that hold 64 of them
inline constexpr std::size_t IntegerRows = 4;   // rows of a block
inline constexpr std::size_t IntegerTiles = 2;  // tiles of a block
inline constexpr bool MultipliesShorts = true;  // two parts are one factor of 16 bits
inline constexpr bool SumsInShorts = true;      // add_dot of bytes has sums of 16 bits
inline constexpr float CodeOffset = 0;          // that 8-bit codes count from

KVC_ALWAYS_INLINE Vector signed_to_float(Words a) {
  return _mm256_cvtepi32_ps(a);
}
KVC_ALWAYS_INLINE void store_shorts(std::int16_t* p, Shorts a) {
  _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(p)), a);
}
KVC_ALWAYS_INLINE Shorts load_shorts(const std::int16_t* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(p)));
}

KVC_ALWAYS_INLINE Shorts max_shorts(Shorts a, Shorts b) {
  return _mm256_max_epi16(a, b);
}
KVC_ALWAYS_INLINE Vector approximate_inverse(Vector a) {
  return divide(set(1.0f), a);
}

KVC_ALWAYS_INLINE Words add_words(Words a, Words b) {
  return _mm256_add_epi32(a, b);
}
template <unsigned Shift>
KVC_ALWAYS_INLINE Words shift_shorts_right(Words a) {
  return _mm256_srli_epi16(a, Shift);
}
/// 8-bit codes less CodeOffset.
KVC_ALWAYS_INLINE Words less_offset(Words codes) {
  return codes;
}
/// sum += the two products of the 16-bit integers of each dword, or, in 16 bits, of each two bytes.
template <bool Unsigned, bool Whole>
KVC_ALWAYS_INLINE Words add_dot(Words sum, Words codes, Words coefficients) {
  if constexpr (Whole)
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes, coefficients));
  else
    sum = _mm256_add_epi16(
        sum, Unsigned ? _mm256_maddubs_epi16(coefficients, codes) : _mm256_maddubs_epi16(codes, coefficients));
  __asm__("" : "+x"(sum));  // or g++ gathers products for a tree of additions, more than there are registers
  return sum;
}
/// sum += both sums of 16 bits in each dword.
KVC_ALWAYS_INLINE Words add_short_sums(Words sum, Words short_sums) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(short_sums, _mm256_set1_epi16(1)));
}
/// The sums of the lanes of IntegerRows vectors.
KVC_ALWAYS_INLINE void sums_of(const Vector* x, float* sums) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}
/// a b / 2^15, rounded.
KVC_ALWAYS_INLINE Shorts multiply_rounded(Shorts a, Shorts b) {
  return _mm256_mulhrs_epi16(a, b);
}

/// 64 floats, one vector after the other, as integers of 16 bits. Bytes 0 and 2 of the dwords that the codes' steps leave, in their order,
/// then bytes 1 and 3, of 32 p; then the same of the others.
KVC_ALWAYS_INLINE void to_shorts(unsigned bits, const Vector* x, Shorts* shorts) {
  KVC_UNROLL
  for (std::size_t half = 0; half < 64; half += 32) {
    __m256i rounded[4];
    KVC_UNROLL
    for (std::size_t i = 0; i < 4; ++i) rounded[i] = _mm256_cvtps_epi32(x[half / Width + i]);
    // p 0-3 and 8-11, then 4-7 and 12-15; the other the same from 16 on
    __m256i low = _mm256_packs_epi32(rounded[0], rounded[1]), high = _mm256_packs_epi32(rounded[2], rounded[3]);
    __m256i even, odd;
    if (bits == 4) {  // step k has p k, 2 + k, 4 + k, 6 + k
      const __m256i first = _mm256_permute2x128_si256(low, high, 0x20),
                    then = _mm256_permute2x128_si256(low, high, 0x31);
      const __m256i units_0_2 = _mm256_unpacklo_epi16(first, then), units_1_3 = _mm256_unpackhi_epi16(first, then);
      even = _mm256_unpacklo_epi64(units_0_2, units_1_3);
      odd = _mm256_unpackhi_epi64(units_0_2, units_1_3);
    } else {
      if (bits == 8) {  // p 4 step ... 4 step + 3
        const __m256i order =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
        const __m256i across = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        low = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(low, order), across);
        high = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(high, order), across);
      } else {  // step k of 16 has p k, 4 + k, 8 + k, 12 + k
        const __m256i order =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
        low = _mm256_shuffle_epi8(low, order);
        high = _mm256_shuffle_epi8(high, order);
      }
      even = _mm256_permute2x128_si256(low, high, 0x20);
      odd = _mm256_permute2x128_si256(low, high, 0x31);
    }
    shorts[half / 16] = even;
    shorts[half / 16 + 1] = odd;
  }
}

/// Stores 64 coefficients, dword by dword in the order of the codes' steps, and adds their sum, in units of their last
/// part, to the lanes of `sum`. Two parts: those of bytes 0 and 2, those of bytes 1 and 3, 16 bits each. One: x = 256 high,
/// rounded. One unsigned: x = 128 high for 0 <= x.
template <unsigned Parts, bool Unsigned>
KVC_ALWAYS_INLINE Words store_parts(const Shorts* x, std::uint32_t* high, std::uint32_t* low, Words sum) {
  KVC_UNROLL
  for (std::size_t i = 0; i < 2; ++i) {
    const __m256i even = x[2 * i], odd = x[2 * i + 1];
    if constexpr (Parts == 2) {
      store_words(high + i * Width, even);
      store_words(low + i * Width, odd);
      sum = add_short_sums(add_short_sums(sum, even), odd);
    } else if constexpr (Unsigned) {
      const __m256i half = _mm256_set1_epi16(64);
      const __m256i bytes =
          _mm256_or_si256(_mm256_srli_epi16(_mm256_add_epi16(even, half), 7),
                          _mm256_and_si256(_mm256_slli_epi16(_mm256_add_epi16(odd, half), 1), _mm256_set1_epi16(-256)));
      store_words(high + i * Width, bytes);
      sum = add_short_sums(sum, _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)));
    } else {
      const __m256i half = _mm256_set1_epi16(128);
      const __m256i bytes = _mm256_or_si256(_mm256_srli_epi16(_mm256_add_epi16(even, half), 8),
                                            _mm256_and_si256(_mm256_add_epi16(odd, half), _mm256_set1_epi16(-256)));
      store_words(high + i * Width, bytes);
      sum = add_short_sums(sum, _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes));
    }
  }
  return sum;
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
