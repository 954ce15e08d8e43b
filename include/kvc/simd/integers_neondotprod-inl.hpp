// Integer operations in AArch64's dot products, on top of the facade of Advanced SIMD. Re-included, no guard.
//
// Both operands are signed (sdot) or both are not (udot). Codes below 128 are either, whatever their coefficients are; codes
// of 8 bits count from 128.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

using namespace neon;  // everything in floating point

using Shorts = int16x8_t;                       // 8 integers of 16 bits
inline constexpr std::size_t ShortsOf64 = 8;    // registers that hold 64 of them
inline constexpr std::size_t IntegerRows = 2;   // rows of a block
inline constexpr std::size_t IntegerTiles = 2;  // tiles of a block
inline constexpr bool MultipliesShorts = false;
inline constexpr bool SumsInShorts = false;
inline constexpr float CodeOffset = 128;

KVC_ALWAYS_INLINE Vector signed_to_float(Words a) {
  return vcvtq_f32_s32(vreinterpretq_s32_u32(a));
}
KVC_ALWAYS_INLINE void store_shorts(std::int16_t* p, Shorts a) {
  vst1q_s16(p, a);
}
KVC_ALWAYS_INLINE Shorts load_shorts(const std::int16_t* p) {
  return vld1q_s16(p);
}

KVC_ALWAYS_INLINE Shorts max_shorts(Shorts a, Shorts b) {
  return vmaxq_s16(a, b);
}
KVC_ALWAYS_INLINE Vector approximate_inverse(Vector a) {
  return divide(set(1.0f), a);
}

KVC_ALWAYS_INLINE Words add_words(Words a, Words b) {
  return vaddq_u32(a, b);
}
template <unsigned Shift>
KVC_ALWAYS_INLINE Words shift_shorts_right(Words a) {
  return vreinterpretq_u32_u16(vshrq_n_u16(vreinterpretq_u16_u32(a), Shift));
}
/// 8-bit codes less CodeOffset.
KVC_ALWAYS_INLINE Words less_offset(Words codes) {
  return veorq_u32(codes, words(0x80808080u));
}
/// sum += the four products of the bytes of each dword. By name: clang++ before 16 declares the intrinsics only where the
/// command line has the instructions.
template <bool Unsigned, bool>
KVC_ALWAYS_INLINE Words add_dot(Words sum, Words codes, Words coefficients) {
  if constexpr (Unsigned)
    __asm__("udot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(codes), "w"(coefficients));
  else
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(codes), "w"(coefficients));
  return sum;
}
KVC_ALWAYS_INLINE Words add_short_sums(Words sum, Words) {
  return sum;
}
/// The sums of the lanes of IntegerRows vectors.
KVC_ALWAYS_INLINE void sums_of(const Vector* x, float* sums) {
  const Vector pairs = vpaddq_f32(x[0], x[1]);
  vst1_f32(sums, vget_low_f32(vpaddq_f32(pairs, pairs)));
}
/// a b / 2^15, rounded.
KVC_ALWAYS_INLINE Shorts multiply_rounded(Shorts a, Shorts b) {
  return vqrdmulhq_s16(a, b);
}

/// 64 floats, one vector after the other, as integers of 16 bits. Of every 16 p, first what becomes bytes 0 and 2 of the dwords that the
/// codes' steps leave, in their order, then what becomes bytes 1 and 3.
KVC_ALWAYS_INLINE void to_shorts(unsigned bits, const Vector* x, Shorts* shorts) {
  KVC_UNROLL
  for (std::size_t run = 0; run < 64; run += 16) {
    int16x8_t rounded[4];  // every other one
    KVC_UNROLL
    for (std::size_t i = 0; i < 4; ++i) rounded[i] = vreinterpretq_s16_s32(vcvtnq_s32_f32(x[run / Width + i]));
    int16x8_t even, odd;
    if (bits == 8) {  // p 4 step ... 4 step + 3
      const int16x8_t low = vuzp1q_s16(rounded[0], rounded[1]), high = vuzp1q_s16(rounded[2], rounded[3]);
      even = vuzp1q_s16(low, high);
      odd = vuzp2q_s16(low, high);
    } else if (bits == 4) {  // step k has p k, 2 + k, 4 + k, 6 + k
      const int64x2_t low = vreinterpretq_s64_s16(vtrn1q_s16(rounded[0], rounded[1]));
      const int64x2_t high = vreinterpretq_s64_s16(vtrn1q_s16(rounded[2], rounded[3]));
      even = vreinterpretq_s16_s64(vzip1q_s64(low, high));
      odd = vreinterpretq_s16_s64(vzip2q_s64(low, high));
    } else {  // step k has p k, 4 + k, 8 + k, 12 + k
      even = vtrn1q_s16(rounded[0], rounded[2]);
      odd = vtrn1q_s16(rounded[1], rounded[3]);
    }
    shorts[run / 8] = even;
    shorts[run / 8 + 1] = odd;
  }
}

/// Stores 64 coefficients, dword by dword in the order of the codes' steps, and adds their sum, in units of their last
/// part, to the lanes of `sum`. Two parts: x = 256 high + low, both signed. One: high alone, x = 256 high, rounded. One
/// unsigned: x = 128 high for 0 <= x.
template <unsigned Parts, bool Unsigned>
KVC_ALWAYS_INLINE Words store_parts(const Shorts* x, std::uint32_t* high, std::uint32_t* low, Words sum) {
  const Words ones = words(0x01010101u);
  KVC_UNROLL
  for (std::size_t i = 0; i < 4; ++i) {
    const Shorts even = x[2 * i], odd = x[2 * i + 1];
    if constexpr (Unsigned) {
      const uint16x8_t half = vdupq_n_u16(64);
      const uint16x8_t a = vshrq_n_u16(vaddq_u16(vreinterpretq_u16_s16(even), half), 7);
      const uint16x8_t b = vshrq_n_u16(vaddq_u16(vreinterpretq_u16_s16(odd), half), 7);
      const Words bytes = vreinterpretq_u32_u8(vtrn1q_u8(vreinterpretq_u8_u16(a), vreinterpretq_u8_u16(b)));
      store_words(high + i * Width, bytes);
      sum = add_dot<true, false>(sum, ones, bytes);
    } else {
      const int16x8_t half = vdupq_n_s16(128);
      const uint8x16_t a = vreinterpretq_u8_s16(vaddq_s16(even, half)), b = vreinterpretq_u8_s16(vaddq_s16(odd, half));
      const Words bytes = vreinterpretq_u32_u8(vtrn2q_u8(a, b));
      store_words(high + i * Width, bytes);
      if constexpr (Parts == 1) {
        sum = add_dot<false, false>(sum, ones, bytes);
      } else {
        store_words(low + i * Width,
                    vreinterpretq_u32_u8(vtrn1q_u8(vreinterpretq_u8_s16(even), vreinterpretq_u8_s16(odd))));
        sum = vreinterpretq_u32_s32(vpadalq_s16(vpadalq_s16(vreinterpretq_s32_u32(sum), even), odd));
      }
    }
  }
  return sum;
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
