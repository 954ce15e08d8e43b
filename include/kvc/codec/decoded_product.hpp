#pragma once
#include <algorithm>
#include <cstddef>

#include "kvc/executor.hpp"
#include "kvc/kernels/dispatch.hpp"
#include "kvc/views.hpp"

namespace kvc::inline KVC_ABI::detail {

/// Rows of any codec, decoded a tile at a time into the dense layout that the kernels read: a user's codec attends at
/// their speed, and never more than 32 KiB are decoded at once. Results are those of one product over all rows, bit for
/// bit: every result has one accumulator, whose terms come in the same order.
class DecodedProduct {
 public:
  static constexpr std::size_t TileFloats = 8192;  // two of them fit the stack of any thread

  /// decode(begin, rows) decodes rows.count rows of `dim` floats, at most TileFloats, from row `begin` on.
  using Decode = FunctionRef<void(std::size_t begin, Rows<float> rows)>;
  DecodedProduct(std::size_t dim, Decode decode) : dim_(dim), decode_(decode) {}

  /// Tokens are lanes: 16 or more at a time, and as many channels of them as fit.
  void scores(std::size_t count, const kernels::Coefficients& queries, const kernels::Results& results) const {
    const std::size_t width = std::min(dim_, TileFloats / kernels::TileLanes);
    const std::size_t tokens = TileFloats / width / kernels::TileLanes * kernels::TileLanes;
    for (std::size_t begin = 0; begin < count; begin += tokens)
      for (std::size_t channel = 0; channel < dim_; channel += width)
        score_tile({begin, std::min(tokens, count - begin), channel, std::min(width, dim_ - channel)}, queries,
                   results);
  }

  /// Channels are lanes: decoded rows lie as the kernel reads them.
  void accumulate(std::size_t count, const kernels::Coefficients& weights, const kernels::Results& results) const {
    const auto layout = kernels::DenseLayout::of_values(Scalar::f32, dim_);
    const std::size_t tokens = TileFloats / layout.p_stride;
    float tile[TileFloats];
    clear_padding(tile, layout.p_stride, std::min(tokens, count));
    for (std::size_t begin = 0; begin == 0 || begin < count; begin += tokens) {
      const std::size_t rows = std::min(tokens, count - begin);
      decode(begin, {tile, rows, dim_, layout.p_stride});
      kernels::active().dense_product(layout, tile, {0, dim_, 0, rows},
                                      {weights.data + begin, weights.rows, weights.stride},
                                      {results.data, results.stride, results.add || begin > 0});
    }
  }

 private:
  void decode(std::size_t begin, Rows<float> rows) const {
    if (rows.count > 0) decode_(begin, rows);
  }
  /// What lies between the end of a row and the next multiple of 16 is multiplied too, and thrown away.
  void clear_padding(float* tile, std::size_t stride, std::size_t rows) const {
    for (std::size_t r = 0; r < rows; ++r) std::fill(tile + r * stride + dim_, tile + (r + 1) * stride, 0.0f);
  }
  /// Window of rows (lanes) and channels (p) of all that is asked for.
  void score_tile(const kernels::Window& part, const kernels::Coefficients& queries,
                  const kernels::Results& results) const {
    const auto layout = kernels::DenseLayout::of_keys(Scalar::f32, part.p_count);
    float decoded[TileFloats], tile[TileFloats];
    for (std::size_t row = 0; row < part.lanes;) {
      const std::size_t left = kernels::TileLanes - row % kernels::TileLanes;
      const std::size_t rows = std::min({part.lanes - row, TileFloats / dim_, left});
      decode(part.lane_begin + row, {decoded, rows, dim_});
      for (std::size_t p = 0; p < part.p_count; ++p) {
        float* lanes = tile + layout.index(p, row);
        for (std::size_t r = 0; r < rows; ++r) lanes[r] = decoded[r * dim_ + part.p_begin + p];
      }
      row += rows;
    }
    const std::size_t used = part.lanes % kernels::TileLanes;
    if (used != 0)
      for (std::size_t p = 0; p < part.p_count; ++p)
        std::fill_n(tile + layout.index(p, part.lanes), kernels::TileLanes - used, 0.0f);
    kernels::active().dense_product(layout, tile, {0, part.lanes, 0, part.p_count},
                                    {queries.data + part.p_begin, queries.rows, queries.stride},
                                    {results.data + part.lane_begin, results.stride, results.add || part.p_begin > 0});
  }

  std::size_t dim_;
  Decode decode_;
};

}  // namespace kvc::detail
