#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kvc/format.hpp"
#include "kvc/half.hpp"

/// One block of each ggml type, in the bytes that ggml's reference quantizers write for finite elements. Where ggml leaves
/// the result open (NaN, a scale beyond its type, the codes of an iq4_nl block without a scale) codes saturate here; a NaN
/// gets the highest code of q types and the lowest of the others.
namespace kvc::inline KVC_ABI::ggml {

/// Keeps what was computed from being fused with what follows: ggml rounds products before it adds.
inline void rounded(const float* values) {
  __asm__ volatile("" : : "r"(values) : "memory");
}

inline void put_half(float value, unsigned char* to) {
  const std::uint16_t half = to_half(value);
  std::memcpy(to, &half, sizeof half);
}
inline float get_half(const unsigned char* from) {
  std::uint16_t half;
  std::memcpy(&half, from, sizeof half);
  return from_half(half);
}

/// `Half` bytes of two codes: byte j holds code j in its low nibble and code j + Half in its high one.
template <std::size_t Half>
void put_nibbles(const std::uint8_t* codes, unsigned char* to) {
  for (std::size_t j = 0; j < Half; ++j)
    to[j] = static_cast<unsigned char>((codes[j] & 15) | (codes[j + Half] & 15) << 4);
}
template <std::size_t Half>
void get_nibbles(const unsigned char* from, std::uint8_t* codes) {
  for (std::size_t j = 0; j < Half; ++j) codes[j] = from[j] & 15;
  for (std::size_t j = 0; j < Half; ++j) codes[j + Half] = static_cast<std::uint8_t>(from[j] >> 4);
}

inline constexpr std::size_t Elements = 32;  // of a block of any type but nvfp4

/// The fifth bits of 32 codes, bit j of code j.
inline void put_fifth_bits(const std::uint8_t* codes, unsigned char* to) {
  std::uint32_t bits = 0;
  for (std::size_t j = 0; j < Elements; ++j) bits |= static_cast<std::uint32_t>(codes[j] >> 4 & 1) << j;
  std::memcpy(to, &bits, sizeof bits);
}
inline void get_fifth_bits(const unsigned char* from, std::uint8_t* codes) {
  std::uint32_t bits;
  std::memcpy(&bits, from, sizeof bits);
  for (std::size_t j = 0; j < Elements; ++j) codes[j] = static_cast<std::uint8_t>(codes[j] | (bits >> j & 1) << 4);
}

/// The element of the largest magnitude, the first of several.
inline float largest(const float* x, std::size_t count) {
  float magnitude = 0, value = 0;
  for (std::size_t j = 0; j < count; ++j)
    if (std::fabs(x[j]) > magnitude) {
      magnitude = std::fabs(x[j]);
      value = x[j];
    }
  return value;
}

struct Range {
  float low, high;
};
inline Range range(const float* x) {
  Range range{INFINITY, -INFINITY};
  for (std::size_t j = 0; j < Elements; ++j) {
    range.low = x[j] < range.low ? x[j] : range.low;
    range.high = x[j] > range.high ? x[j] : range.high;
  }
  return range.low <= range.high ? range : Range{0, 0};
}

inline float inverse(float scale) {
  return scale != 0 ? 1 / scale : 0;
}

/// Codes of (x - minimum) * factor + bias, its fraction cut off, in [0, top].
inline void cut(const float* x, float minimum, float factor, float bias, int top, std::uint8_t* codes) {
  float scaled[Elements];
  for (std::size_t j = 0; j < Elements; ++j) scaled[j] = (x[j] - minimum) * factor;
  rounded(scaled);
  const auto limit = static_cast<float>(top);
  for (std::size_t j = 0; j < Elements; ++j) {
    const float code = scaled[j] + bias;
    codes[j] = static_cast<std::uint8_t>(code < limit ? (code > 0 ? static_cast<int>(code) : 0) : top);
  }
}

/// q4_0 and q5_0: fp16 scale, which makes the largest element the lowest code; code = x / scale + 2^(Bits - 1).
/// q4_1 and q5_1: fp16 scale and minimum. Five bits: the fifth ones follow in a dword. Then the nibbles.
template <unsigned Bits, bool HasMinimum>
struct Linear {
  static constexpr int Top = (1 << Bits) - 1, Middle = 1 << (Bits - 1);
  static constexpr std::size_t Fifth = HasMinimum ? 4 : 2, Nibbles = Fifth + (Bits == 5 ? 4 : 0);

  static void encode(const float* x, unsigned char* block) {
    std::uint8_t codes[Elements];
    if constexpr (HasMinimum) {
      const auto [low, high] = range(x);
      const float scale = (high - low) / static_cast<float>(Top);
      cut(x, low, inverse(scale), 0.5f, Top, codes);
      put_half(scale, block);
      put_half(low, block + 2);
    } else {
      const float scale = largest(x, Elements) / static_cast<float>(-Middle);
      cut(x, 0, inverse(scale), static_cast<float>(Middle) + 0.5f, Top, codes);
      put_half(scale, block);
    }
    if constexpr (Bits == 5) put_fifth_bits(codes, block + Fifth);
    put_nibbles<Elements / 2>(codes, block + Nibbles);
  }

  static void decode(const unsigned char* block, float* x) {
    std::uint8_t codes[Elements];
    get_nibbles<Elements / 2>(block + Nibbles, codes);
    if constexpr (Bits == 5) get_fifth_bits(block + Fifth, codes);
    const float scale = get_half(block);
    if constexpr (HasMinimum) {
      const float minimum = get_half(block + 2);  // products of a half and a code are exact
      for (std::size_t j = 0; j < Elements; ++j) x[j] = static_cast<float>(codes[j]) * scale + minimum;
    } else {
      for (std::size_t j = 0; j < Elements; ++j) x[j] = static_cast<float>(codes[j] - Middle) * scale;
    }
  }
};

/// q8_0: fp16 scale = largest magnitude / 127, then x / scale in 32 signed bytes, halves rounded away from zero.
struct Bytes {
  static void encode(const float* x, unsigned char* block) {
    const float scale = std::fabs(largest(x, Elements)) / 127, factor = inverse(scale);
    put_half(scale, block);
    for (std::size_t j = 0; j < Elements; ++j) {
      const float scaled = x[j] * factor;
      const float limited = scaled < 127 ? (scaled > -127 ? scaled : -127) : 127;
      const int whole = static_cast<int>(limited);
      const float rest = limited - static_cast<float>(whole);
      block[2 + j] = static_cast<unsigned char>(whole + (rest >= 0.5f) - (rest <= -0.5f));
    }
  }
  static void decode(const unsigned char* block, float* x) {
    const float scale = get_half(block);
    for (std::size_t j = 0; j < Elements; ++j)
      x[j] = static_cast<float>(static_cast<signed char>(block[2 + j])) * scale;
  }
};

/// iq4_nl: fp16 scale, then nibbles that name one of 16 unevenly spaced levels. The scale that makes the largest element
/// the lowest level chooses the codes; the scale stored is the one that fits these codes best, weighted by x^2.
struct Uneven {
  static constexpr float Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

  static void encode(const float* x, unsigned char* block) {
    std::uint8_t codes[Elements] = {};
    float scale = 0;
    const float extreme = largest(x, Elements);
    if (std::fabs(extreme) >= 1e-15f) {
      const float factor = 1 / (extreme / Levels[0]);
      float numerators[Elements], denominators[Elements];
      for (std::size_t j = 0; j < Elements; ++j) {
        codes[j] = nearest(factor * x[j]);
        const float level = Levels[codes[j]], weight = x[j] * x[j];
        numerators[j] = weight * level * x[j];
        denominators[j] = weight * level * level;
      }
      rounded(numerators);
      rounded(denominators);
      float numerator = 0, denominator = 0;
      for (std::size_t j = 0; j < Elements; ++j) {
        numerator += numerators[j];
        denominator += denominators[j];
      }
      if (denominator > 0) scale = numerator / denominator;
    }
    put_half(scale, block);
    put_nibbles<Elements / 2>(codes, block + 2);
  }
  static void decode(const unsigned char* block, float* x) {
    std::uint8_t codes[Elements];
    get_nibbles<Elements / 2>(block + 2, codes);
    const float scale = get_half(block);
    for (std::size_t j = 0; j < Elements; ++j) x[j] = scale * Levels[codes[j]];
  }

 private:
  /// Of two levels equally near, the higher.
  static std::uint8_t nearest(float x) {
    unsigned code = 0;
    for (std::size_t i = 0; i < 15; ++i) code += x >= (Levels[i] + Levels[i + 1]) / 2;
    return static_cast<std::uint8_t>(code);
  }
};

/// The 4-bit float E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, from code 8 on), in units of half a scale.
struct TinyFloat {
  static constexpr float Levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

  /// The nearest, of two equally near the smaller.
  static std::uint8_t nearest(float x, float unit) {
    unsigned code = 0;
    for (std::size_t i = 0; i < 7; ++i) code += std::fabs(x) > (Levels[i] + Levels[i + 1]) / 2 * unit;
    return static_cast<std::uint8_t>(unit > 0 ? code + (x < 0 && code > 0 ? 8 : 0) : 0);
  }
};

/// mxfp4: a byte e, then nibbles of E2M1 times 2^(e - 127); the largest magnitude lies in [4, 8).
struct MicroscalingFloat {
  static void encode(const float* x, unsigned char* block) {
    const float extreme = std::fabs(largest(x, Elements));
    const float exponent = extreme > 0 ? std::floor(std::log2(extreme)) + 125 : 0;
    block[0] = static_cast<unsigned char>(std::clamp(exponent, 0.0f, 254.0f));
    std::uint8_t codes[Elements];
    const float scale = unit(block[0]);
    for (std::size_t j = 0; j < Elements; ++j) codes[j] = TinyFloat::nearest(x[j], scale);
    put_nibbles<Elements / 2>(codes, block + 1);
  }
  static void decode(const unsigned char* block, float* x) {
    std::uint8_t codes[Elements];
    get_nibbles<Elements / 2>(block + 1, codes);
    const float scale = unit(block[0]);
    for (std::size_t j = 0; j < Elements; ++j) x[j] = TinyFloat::Levels[codes[j]] * scale;
  }

 private:
  /// 2^(e - 128), half of what e stands for.
  static float unit(unsigned char e) {
    return std::bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<std::uint32_t>(e - 1) << 23);
  }
};

/// nvfp4: 64 elements: for each 16 of them a scale in E4M3 without its sign bit, their largest magnitude / 6; then the
/// nibbles of E2M1, 8 bytes for each 16 elements.
struct NarrowScaleFloat {
  static constexpr std::size_t Parts = 4, Part = 16;

  static void encode(const float* x, unsigned char* block) {
    for (std::size_t part = 0; part < Parts; ++part, x += Part) {
      block[part] = to_scale(std::fabs(largest(x, Part)) / 6);
      std::uint8_t codes[Part];
      const float scale = unit(block[part]);
      for (std::size_t j = 0; j < Part; ++j) codes[j] = TinyFloat::nearest(x[j], scale);
      put_nibbles<Part / 2>(codes, block + Parts + part * Part / 2);
    }
  }
  static void decode(const unsigned char* block, float* x) {
    for (std::size_t part = 0; part < Parts; ++part, x += Part) {
      std::uint8_t codes[Part];
      get_nibbles<Part / 2>(block + Parts + part * Part / 2, codes);
      const float scale = unit(block[part]);
      for (std::size_t j = 0; j < Part; ++j) x[j] = TinyFloat::Levels[codes[j]] * scale;
    }
  }

 private:
  /// Half of what the scale's byte stands for: 4 bits of exponent (bias 7), 3 of mantissa. ggml reads 0x7f (NaN) as 0.
  static float unit(unsigned char scale) {
    const int exponent = scale >> 3 & 15, mantissa = scale & 7;
    if (scale == 0x7f) return 0;
    return exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -10)
                         : std::ldexp(static_cast<float>(8 + mantissa), exponent - 11);
  }
  /// Rounded to nearest, halves up; beyond 1.75 * 2^7 the mantissa is 6: ggml's largest scale is 448.
  static unsigned char to_scale(float value) {
    if (!(value > 0)) return 0;
    const auto bits = std::bit_cast<std::uint32_t>(std::min(value, 448.0f));
    const int exponent = static_cast<int>(bits >> 23) - 127 + 7;
    if (exponent <= 0) return static_cast<unsigned char>(std::min(static_cast<int>(value * 512 + 0.5f), 7));
    // Exponent and mantissa are neighbours: a carry out of the mantissa is a higher exponent.
    const std::uint32_t code = static_cast<std::uint32_t>(exponent) << 3 | (bits >> 20 & 7);
    return exponent >= 15 ? 0x7e : static_cast<unsigned char>(std::min(code + (bits >> 19 & 1), 0x7eu));
  }
};

struct Functions {
  void (*encode)(const float* x, unsigned char* block);
  void (*decode)(const unsigned char* block, float* x);
};
template <class Type>
inline constexpr Functions FunctionsOf = {Type::encode, Type::decode};

/// How one block of a type is written and read.
inline Functions functions(GgmlType type) {
  constexpr Functions All[] = {
      // in the order of GgmlType
      FunctionsOf<Linear<4, false>>,  FunctionsOf<Linear<4, true>>, FunctionsOf<Linear<5, false>>,
      FunctionsOf<Linear<5, true>>,   FunctionsOf<Bytes>,           FunctionsOf<Uneven>,
      FunctionsOf<MicroscalingFloat>, FunctionsOf<NarrowScaleFloat>};
  return All[static_cast<std::size_t>(type)];
}

}  // namespace kvc::ggml
