#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>

#include "kvc/format.hpp"
#include "kvc/kernels/dispatch.hpp"
#include "kvc/views.hpp"

namespace kvc::inline KVC_ABI {

/// Whether a codec's rows are keys (read by scores) or values (read by accumulate).
enum class Role : std::uint8_t { key, value };

/// How a block of rows is laid out in bytes, with the kernels that read it: a value, chosen per head and for keys and values
/// apart. A user's own codec needs block_bytes, encode and decode; scores and accumulate then decode a few rows at a time
/// and run the dense kernels on them.
/// A block has room for `capacity` rows; every call says which of them it means. Codecs are immutable and thread-safe.
/// They run in the middle of attention: one that uses AMX tiles itself must leave the thread's tile configuration as it was.
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
  // `inline` here and not only below: the first virtual function that is neither pure nor inline in its class makes g++ emit
  // the class's table, and everything behind it, in every file that sees this one.
  /// results[i][r] (+)= queries[i] · row(first + r) for r < count.
  inline virtual void scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                             const kernels::Coefficients& queries, const kernels::Results& results) const;
  /// results[i] (+)= sum over r < count of weights[i][r] * row(first + r).
  inline virtual void accumulate(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                                 const kernels::Coefficients& weights, const kernels::Results& results) const;
};

namespace detail {

/// Rows of any codec, decoded a tile at a time into the dense layout that the kernels read: a user's codec attends at
/// their speed, and never more than 32 KiB are decoded at once. Results are those of one product over all rows, bit for
/// bit: every result has one accumulator, whose terms come in the same order.
class DecodedProduct {
 public:
  DecodedProduct(const Codec& codec, const std::byte* block, std::size_t capacity, std::size_t first)
      : codec_(codec), block_(block), capacity_(capacity), first_(first) {
    if (codec.dim() > TileFloats)
      fail(ErrorCode::invalid_argument, "Codec " + codec.name() + ": rows of " + std::to_string(codec.dim()) +
                                            " floats, more than " + std::to_string(TileFloats) +
                                            ", need scores() and accumulate() of their own");
  }

  /// Tokens are lanes: 16 or more at a time, and as many channels of them as fit.
  void scores(std::size_t count, const kernels::Coefficients& queries, const kernels::Results& results) const {
    const std::size_t dim = codec_.dim(), width = std::min(dim, TileFloats / TileLanes);
    const std::size_t tokens = TileFloats / width / TileLanes * TileLanes;
    for (std::size_t begin = 0; begin < count; begin += tokens)
      for (std::size_t channel = 0; channel < dim; channel += width)
        score_tile({begin, std::min(tokens, count - begin), channel, std::min(width, dim - channel)}, queries, results);
  }

  /// Channels are lanes: decoded rows lie as the kernel reads them.
  void accumulate(std::size_t count, const kernels::Coefficients& weights, const kernels::Results& results) const {
    const std::size_t dim = codec_.dim();
    const auto layout = kernels::DenseLayout::of_values(Scalar::f32, dim);
    const std::size_t tokens = TileFloats / layout.depth_stride;
    float tile[TileFloats];
    clear_padding(tile, layout.depth_stride, std::min(tokens, count));
    for (std::size_t begin = 0; begin == 0 || begin < count; begin += tokens) {
      const std::size_t rows = std::min(tokens, count - begin);
      decode(begin, {tile, rows, dim, layout.depth_stride});
      kernels::active().dense_product(layout, tile, {0, dim, 0, rows},
                                      {weights.data + begin, weights.rows, weights.stride},
                                      {results.data, results.stride, results.add || begin > 0});
    }
  }

 private:
  static constexpr std::size_t TileFloats = 8192;  // two of them fit the stack of any thread

  void decode(std::size_t begin, Rows<float> rows) const {
    if (rows.count > 0) codec_.decode(block_, capacity_, first_ + begin, rows);
  }
  /// What lies between the end of a row and the next multiple of 16 is multiplied too, and thrown away.
  void clear_padding(float* tile, std::size_t stride, std::size_t rows) const {
    for (std::size_t r = 0; r < rows; ++r) std::fill(tile + r * stride + codec_.dim(), tile + (r + 1) * stride, 0.0f);
  }
  /// Window of rows (lanes) and channels (p) of all that is asked for.
  void score_tile(const kernels::Area& part, const kernels::Coefficients& queries,
                  const kernels::Results& results) const {
    const std::size_t dim = codec_.dim();
    const auto layout = kernels::DenseLayout::of_keys(Scalar::f32, part.depth_count);
    float decoded[TileFloats], tile[TileFloats];
    for (std::size_t row = 0; row < part.lanes;) {
      const std::size_t left = TileLanes - row % TileLanes;
      const std::size_t rows = std::min({part.lanes - row, TileFloats / dim, left});
      decode(part.lane_begin + row, {decoded, rows, dim});
      for (std::size_t p = 0; p < part.depth_count; ++p) {
        float* lanes = tile + layout.index(p, row);
        for (std::size_t r = 0; r < rows; ++r) lanes[r] = decoded[r * dim + part.depth_begin + p];
      }
      row += rows;
    }
    const std::size_t used = part.lanes % TileLanes;
    if (used != 0)
      for (std::size_t p = 0; p < part.depth_count; ++p)
        std::fill_n(tile + layout.index(p, part.lanes), TileLanes - used, 0.0f);
    kernels::active().dense_product(layout, tile, {0, part.lanes, 0, part.depth_count},
                                    {queries.data + part.depth_begin, queries.rows, queries.stride},
                                    {results.data + part.lane_begin, results.stride, results.add || part.depth_begin > 0});
  }

  const Codec& codec_;
  const std::byte* block_;
  std::size_t capacity_, first_;
};

}  // namespace detail

inline void Codec::scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                          const kernels::Coefficients& queries, const kernels::Results& results) const {
  detail::DecodedProduct(*this, block, capacity, first).scores(count, queries, results);
}

inline void Codec::accumulate(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                              const kernels::Coefficients& weights, const kernels::Results& results) const {
  detail::DecodedProduct(*this, block, capacity, first).accumulate(count, weights, results);
}

}  // namespace kvc
