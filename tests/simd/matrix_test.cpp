// The matrix products of kvc/matrix.hpp at every level, against sums in double.
#include <cmath>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/matrix.hpp"
#include "support/oracle.hpp"

using namespace oracle;

namespace {

struct Shape {
  std::size_t rows, depth, columns;
};
// Around the edges of tiles, of bands, and of slabs along the depth.
constexpr Shape Shapes[] = {{1, 1, 1}, {3, 17, 15}, {16, 64, 33}, {5, 256, 130}, {40, 257, 16}, {129, 600, 64}};

double at(const std::vector<float>& matrix, std::size_t row, std::size_t column, std::size_t stride) {
  return double(matrix[row * stride + column]);
}

}  // namespace

TEST_CASE("multiply and multiply_transposed are sums of products, whatever the shape and the strides") {
  for (const Shape& shape : Shapes) {
    const std::size_t stride = shape.depth + 3;
    const std::vector<float> a = normal_floats(shape.rows * stride, 1),
                             b = normal_floats(shape.depth * shape.columns, 2),
                             b_rows = normal_floats(shape.columns * stride, 3);
    at_every_isa([&](kvc::Isa isa) {
      INFO(kvc::to_string(isa) << " " << shape.rows << " x " << shape.depth << " x " << shape.columns);
      std::vector<float> plain(shape.rows * shape.columns, NotANumber), transposed = plain;
      const kvc::ConstRows left(a.data(), shape.rows, shape.depth, stride);
      kvc::multiply(left, {b.data(), shape.depth, shape.columns}, {plain.data(), shape.rows, shape.columns});
      kvc::multiply_transposed(left, {b_rows.data(), shape.columns, shape.depth, stride},
                               {transposed.data(), shape.rows, shape.columns});
      Worst worst;
      for (std::size_t row = 0; row < shape.rows; ++row)
        for (std::size_t column = 0; column < shape.columns; ++column) {
          double sum = 0, other = 0, size = 0, other_size = 0;
          for (std::size_t d = 0; d < shape.depth; ++d) {
            const double x = at(a, row, d, stride), y = at(b, d, column, shape.columns),
                         z = at(b_rows, column, d, stride);
            sum += x * y;
            other += x * z;
            size += std::abs(x * y);
            other_size += std::abs(x * z);
          }
          const double bound = Unit * double(shape.depth + 1);
          worst.add(plain[row * shape.columns + column], sum, bound * size);
          worst.add(transposed[row * shape.columns + column], other, bound * other_size);
        }
      CHECK(worst.value() <= 1);
    });
  }
}

TEST_CASE("gram is the product of the rows with themselves, symmetric to the bit") {
  for (const std::size_t rows : {std::size_t{1}, std::size_t{17}, std::size_t{128}, std::size_t{200}}) {
    constexpr std::size_t Depth = 300;
    const std::vector<float> a = normal_floats(rows * Depth, 4);
    at_every_isa([&](kvc::Isa isa) {
      INFO(kvc::to_string(isa) << " " << rows);
      std::vector<float> product(rows * rows, NotANumber);
      kvc::gram({a.data(), rows, Depth}, {product.data(), rows, rows});
      Worst worst;
      bool symmetric = true;
      for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t j = 0; j < rows; ++j) {
          double sum = 0, size = 0;
          for (std::size_t d = 0; d < Depth; ++d) {
            sum += at(a, i, d, Depth) * at(a, j, d, Depth);
            size += std::abs(at(a, i, d, Depth) * at(a, j, d, Depth));
          }
          worst.add(product[i * rows + j], sum, Unit * double(Depth + 1) * size);
          symmetric = symmetric && product[i * rows + j] == product[j * rows + i];
        }
      CHECK(worst.value() <= 1);
      CHECK(symmetric);
    });
  }
}

TEST_CASE("log_sum_exp leaves the terms of a softmax and their sum") {
  const std::vector<float> logits = normal_floats(77, 5);
  at_every_isa([&](kvc::Isa isa) {
    INFO(kvc::to_string(isa));
    std::vector<float> terms = logits;
    float sum = NotANumber;
    const float lse = kvc::log_sum_exp(terms, sum);
    double expected = 0, added = 0;
    for (const float logit : logits) expected += std::exp(double(logit));
    for (const float term : terms) added += double(term);
    CHECK(std::abs(double(lse) - std::log(expected)) < 1e-6);
    CHECK(std::abs(double(sum) - added) < 1e-4);
    CHECK(std::abs(double(terms[9]) / added - std::exp(double(logits[9])) / expected) < 1e-6);
  });
}
