#pragma once
#include <cstddef>
#include <cstdint>

#include "kvc/arithmetic.hpp"
#include "kvc/format.hpp"
#include "kvc/kernels/layout.hpp"

namespace kvc::inline KVC_ABI::kernels {

/// Rows of coefficients: queries when scores are computed, attention weights when values are summed.
struct Coefficients {
  const float* data = nullptr;
  std::size_t rows = 0, stride = 0;
  Arithmetic arithmetic = Arithmetic::exact;  ///< of products with codes
  bool weights = false;                       ///< attention weights, at least 0, rather than queries
  std::ptrdiff_t ahead = 0;  ///< bytes from what is read to what will be needed next and is prefetched; 0: nothing
};

/// Rows of results, `stride` floats apart.
struct Results {
  float* data = nullptr;
  std::size_t stride = 0;
  bool add = false;  ///< add to what is there instead of replacing it
};

/// Plain floats seen as x[depth][lane], for encoding from and decoding to.
struct FloatMatrix {
  float* data = nullptr;
  std::size_t depth_stride = 0, lane_stride = 0;
};
struct ConstFloatMatrix {
  const float* data = nullptr;
  std::size_t depth_stride = 0, lane_stride = 0;
};

/// The elements of a block at lanes [lane_begin, lane_begin + lanes) and depths [depth_begin, depth_begin + depth_count).
struct Area {
  std::size_t lane_begin = 0, lanes = 0, depth_begin = 0, depth_count = 0;
};

/// One instruction set's kernels. Every block is a matrix x[depth][lane] (see layout.hpp):
///   keys:   lane = token, depth = channel; product(queries) gives scores
///   values: lane = channel, depth = token; product(weights) gives outputs
/// so one loop, out[row][lane] (+)= sum over d of coefficient[row][d] * x[d][lane], serves scores and accumulation, decode
/// (rows = the query group) and prefill (rows = many queries), dense and packed.
struct Table {
  const char* name;

  /// out[row][lane - lane_begin] (+)= sum over the area's depths d of coefficients[row][d - depth_begin] * x[d][lane].
  /// The sum runs in ascending order of depth in one accumulator per result: results do not depend on how rows or lanes
  /// are split over calls. lane_begin is a multiple of 16. Writes exactly `lanes` results a row.
  void (*dense_product)(const DenseLayout&, const void* block, const Area&, const Coefficients&, const Results&);

  /// Writes the area of a block from floats; source element (0, 0) is the area's first.
  void (*dense_encode)(const DenseLayout&, void* block, const Area&, const ConstFloatMatrix& source);
  void (*dense_decode)(const DenseLayout&, const void* block, const Area&, const FloatMatrix& target);

  /// Online softmax over `count` further scores of each row: scores += bias (null: none), maximum becomes the new running
  /// maximum, scores become exp(score - maximum), sum becomes sum * correction + the new terms, correction =
  /// exp(old maximum - maximum). While a row has seen only -inf its terms are 0 and its correction 1.
  void (*softmax_update)(float* scores, std::size_t stride, std::size_t rows, std::size_t count, const float* bias,
                         float* maximum, float* sum, float* correction);
  /// Each row r of x times factors[r].
  void (*scale_rows)(float* x, std::size_t stride, std::size_t rows, std::size_t count, const float* factors);
  /// target[i] = exp(scores[i] + bias[i]); bias may be null.
  void (*exponentials)(const float* scores, const float* bias, std::size_t count, float* target);
  /// maxima[i] = the largest of maxima[i] and factors[r] * x[r][i] over all rows r.
  void (*column_maxima)(const float* x, std::size_t stride, std::size_t rows, std::size_t count, const float* factors,
                        float* maxima);
  /// scores[i] = cap * tanh(scores[i] / cap).
  void (*softcap)(float* scores, std::size_t count, float cap);
  /// Whether all `count` floats are numbers of at most this magnitude; `most` is finite.
  bool (*all_within)(const float* x, std::size_t count, float most);

  /// Called before and after a thread's run of products that no code but codecs interrupts; null: needless. Without them
  /// every packed product shapes and releases its matrix tiles itself.
  void (*enter)() = nullptr;
  void (*leave)() = nullptr;
};

/// One instruction set's kernels over codes. They are apart because a header-only program without a quantized format then
/// does without them, and they are most of its kernels.
struct PackedTable {
  /// dense_product over codes. lane_begin and depth_begin lie on group and dword boundaries (PackedLayout::lane_granule,
  /// depth_granule). Unless exact arithmetic is asked for, levels that multiply integers quantize the coefficients: their
  /// results depend on the area's groups, not on the other rows.
  void (*product)(const PackedLayout&, const void* block, const Area&, const Coefficients&, const Results&);
  /// Quantizes the area, which covers whole groups, and writes codes, scales and minima.
  void (*encode)(const PackedLayout&, void* block, const Area&, const ConstFloatMatrix& source);
  void (*decode)(const PackedLayout&, const void* block, const Area&, const FloatMatrix& target);
  /// Whether product() multiplies in integers unless exact arithmetic is asked for.
  bool multiplies_integers = false;
};

}  // namespace kvc::kernels
