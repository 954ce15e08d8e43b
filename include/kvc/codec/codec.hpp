#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>

#include "kvc/format.hpp"
#include "kvc/kernels/table.hpp"
#include "kvc/views.hpp"

namespace kvc {

/// Whether a codec's rows are keys (read by scores) or values (read by accumulate).
enum class Role : std::uint8_t { key, value };

/// How a block of rows is laid out in bytes, with the kernels that read it: a value, chosen per head and for keys and values
/// apart. A user's own codec needs block_bytes, encode and decode; scores and accumulate then run on decoded rows.
/// A block has room for `capacity` rows; every call says which of them it means. Codecs are immutable and thread-safe.
class Codec {
 public:
  virtual ~Codec() = default;
  virtual std::string name() const = 0;
  /// Floats of a row.
  virtual std::size_t dim() const = 0;
  /// Bytes of a block with room for `capacity` rows: codes, scales, everything.
  virtual std::size_t block_bytes(std::size_t capacity) const = 0;
  /// Rows are encoded in multiples of this: 1, or the tokens that share a scale.
  virtual std::size_t granule() const { return 1; }
  /// Ranges that scores and accumulate are asked for begin on multiples of this.
  virtual std::size_t range_granule() const { return granule(); }

  /// Writes rows [first, first + rows.count) of a block; first and count are multiples of granule().
  virtual void encode(ConstRows rows, std::byte* block, std::size_t capacity, std::size_t first) const = 0;
  /// Reads rows [first, first + rows.count) back.
  virtual void decode(const std::byte* block, std::size_t capacity, std::size_t first, Rows<float> rows) const = 0;
  /// results[i][r] (+)= queries[i] · row(first + r) for r < count.
  virtual void scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                      const kernels::Coefficients& queries, const kernels::Results& results) const;
  /// results[i] (+)= sum over r < count of weights[i][r] * row(first + r).
  virtual void accumulate(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                          const kernels::Coefficients& weights, const kernels::Results& results) const;
};

namespace detail {
/// Floats that one step of the decoding fallback takes: small enough for the stack of any thread.
inline constexpr std::size_t FallbackFloats = 8192;

/// Rows of `codec` that fit into those.
inline std::size_t fallback_rows(const Codec& codec) {
  if (codec.dim() > FallbackFloats)
    fail(ErrorCode::invalid_argument, "Codec " + codec.name() + ": rows of " + std::to_string(codec.dim()) +
                                          " floats, more than " + std::to_string(FallbackFloats) +
                                          ", need scores() and accumulate() of their own");
  return FallbackFloats / codec.dim();
}
}  // namespace detail

inline void Codec::scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                          const kernels::Coefficients& queries, const kernels::Results& results) const {
  const std::size_t step = detail::fallback_rows(*this);
  float decoded[detail::FallbackFloats];
  for (std::size_t begin = 0; begin < count; begin += step) {
    const std::size_t rows = std::min(step, count - begin);
    decode(block, capacity, first + begin, {decoded, rows, dim()});
    for (std::size_t i = 0; i < queries.rows; ++i)
      for (std::size_t r = 0; r < rows; ++r) {
        float sum = 0;
        for (std::size_t c = 0; c < dim(); ++c) sum += queries.data[i * queries.stride + c] * decoded[r * dim() + c];
        float& result = results.data[i * results.stride + begin + r];
        result = results.add ? result + sum : sum;
      }
  }
}

inline void Codec::accumulate(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                              const kernels::Coefficients& weights, const kernels::Results& results) const {
  const std::size_t step = detail::fallback_rows(*this);
  float decoded[detail::FallbackFloats];
  if (!results.add)
    for (std::size_t i = 0; i < weights.rows; ++i) std::fill_n(results.data + i * results.stride, dim(), 0.0f);
  for (std::size_t begin = 0; begin < count; begin += step) {
    const std::size_t rows = std::min(step, count - begin);
    decode(block, capacity, first + begin, {decoded, rows, dim()});
    for (std::size_t i = 0; i < weights.rows; ++i)
      for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t c = 0; c < dim(); ++c)
          results.data[i * results.stride + c] += weights.data[i * weights.stride + begin + r] * decoded[r * dim() + c];
  }
}

}  // namespace kvc
