#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvc/cache/core.hpp"

namespace evaluation {

/// What the bytes of a cache are. They add up to Stats::bytes().
struct Parts {
  double dense = 0;     ///< rows that no policy quantized
  double codes = 0;     ///< quantized numbers; of formats other than GroupQuant with their scales
  double scales = 0;    ///< scales and minima of groups
  double metadata = 0;  ///< positions, row maps, multiplicities, what policies remember
  double slack = 0;     ///< bytes allocated and not in use

  Parts& operator+=(const Parts& other);
  Parts& operator/=(double divisor);
};

/// Which positions of a prompt a cache still holds, as a picture: a row for every head of every layer, a column for every
/// stretch of the prompt. A pixel says which share of its stretch the head kept, from 0 to 15.
struct KeptPicture {
  static constexpr std::size_t Columns = 128;  ///< at most; shorter prompts have a column for every token
  static constexpr std::uint8_t Whole = 15;

  std::size_t columns = 0;
  std::vector<std::uint8_t> pixels;  ///< [layers * kv_heads, columns]

  std::size_t rows() const { return columns == 0 ? 0 : pixels.size() / columns; }
  /// A hexadecimal digit for every pixel.
  std::string to_text() const;
  /// Throws kvc::Error (bad_file) if the text is none, or not of whole rows.
  static KeptPicture from_text(std::size_t columns, const std::string& text);
};

/// A cache at the end of a prompt.
struct Footprint {
  double bytes = 0, dense_bytes = 0;
  double kept = 0;  ///< share of the tokens that are still there
  Parts parts;
};

Footprint measure(const kvc::CacheCore& cache);
KeptPicture picture(const kvc::CacheCore& cache, std::size_t prompt);

}  // namespace evaluation
