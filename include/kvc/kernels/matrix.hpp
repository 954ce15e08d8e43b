#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "kvc/assert.hpp"
#include "kvc/kernels/dispatch.hpp"
#include "kvc/matrix.hpp"

// The products of kvc/matrix.hpp. A factor is copied into a dense block x[depth][lane], slab by slab along the depth, so that a
// tile of a slab stays in the processor's cache while the rows of the other factor go by.
namespace kvc::inline KVC_ABI {

namespace kernels {

/// One slab: depths [begin, begin + count) of a matrix with so many lanes.
class Slab {
 public:
  static constexpr std::size_t Depth = 256;

  explicit Slab(std::size_t lanes) : lanes_(lanes), floats_(round_up(lanes, TileLanes) * Depth + TileLanes) {
    const auto address = reinterpret_cast<std::size_t>(floats_.data());
    block_ = floats_.data() + (round_up(address, 64) - address) / sizeof(float);
  }
  void load(const ConstFloatMatrix& source, std::size_t depth) {
    depth_ = depth;
    active().dense_encode(layout(), block_, {0, lanes_, 0, depth}, source);
  }
  /// results[row][lane - first] += the products of the coefficients with the lanes [first, first + count).
  void multiply(const float* coefficients, std::size_t rows, std::size_t stride, std::size_t first, std::size_t count,
                const Results& results) const {
    active().dense_product(layout(), block_, {first, count, 0, depth_}, {coefficients, rows, stride}, results);
  }

 private:
  DenseLayout layout() const { return DenseLayout::of_keys(Scalar::f32, Depth); }

  std::size_t lanes_, depth_ = 0;
  std::vector<float> floats_;
  float* block_;
};

/// out = a * x, where element (d, lane) of x is x.data[d * x.depth_stride + lane * x.lane_stride].
inline void multiply(ConstRows a, const ConstFloatMatrix& x, Rows<float> out) {
  Slab slab(out.dim);
  for (std::size_t d = 0; d < a.dim; d += Slab::Depth) {
    slab.load({x.data + d * x.depth_stride, x.depth_stride, x.lane_stride}, std::min(Slab::Depth, a.dim - d));
    slab.multiply(a.data + d, a.count, a.stride, 0, out.dim, {out.data, out.stride, d != 0});
  }
}

}  // namespace kernels

KVC_FORWARD void multiply(ConstRows a, ConstRows b, Rows<float> out) {
  KVC_ASSERT(a.dim == b.count && out.count == a.count && out.dim == b.dim);
  kernels::multiply(a, {b.data, b.stride, 1}, out);
}

KVC_FORWARD void multiply_transposed(ConstRows a, ConstRows b, Rows<float> out) {
  KVC_ASSERT(a.dim == b.dim && out.count == a.count && out.dim == b.count);
  kernels::multiply(a, {b.data, 1, b.stride}, out);
}

KVC_FORWARD void gram(ConstRows a, Rows<float> out) {
  KVC_ASSERT(out.count == a.count && out.dim == a.count);
  constexpr std::size_t Band = 8 * TileLanes;
  kernels::Slab slab(a.count);
  for (std::size_t d = 0; d < a.dim; d += kernels::Slab::Depth) {
    slab.load({a.data + d, 1, a.stride}, std::min(kernels::Slab::Depth, a.dim - d));
    for (std::size_t lane = 0; lane < a.count; lane += Band)  // rows from the band's first on: the lower triangle
      slab.multiply(a.data + lane * a.stride + d, a.count - lane, a.stride, lane, std::min(Band, a.count - lane),
                    {out.data + lane * out.stride + lane, out.stride, d != 0});
  }
  for (std::size_t row = 0; row < a.count; ++row)
    for (std::size_t column = row + 1; column < a.count; ++column) out[row][column] = out[column][row];
}

KVC_FORWARD void exponentiate(std::span<float> numbers) {
  kernels::active().exponentials(numbers.data(), nullptr, numbers.size(), numbers.data());
}

KVC_FORWARD float log_sum_exp(std::span<float> numbers, float& sum) {
  float largest = -std::numeric_limits<float>::infinity(), correction = 1;
  sum = 0;
  kernels::active().softmax_update(numbers.data(), numbers.size(), 1, numbers.size(), nullptr, &largest, &sum,
                                   &correction);
  return largest + std::log(sum);
}

}  // namespace kvc::inline KVC_ABI
