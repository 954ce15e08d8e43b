#pragma once
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvc/codec/codec.hpp"

/// Rows are turned by the Hadamard matrix, which spreads outliers over all channels, and then encoded by another codec.
/// Reading never turns a row: a query is turned once before it meets them, and a sum of values once at the end.
class HadamardCodec final : public kvc::Codec {
 public:
  /// `dim` is a power of two.
  explicit HadamardCodec(std::shared_ptr<const kvc::Codec> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return "hadamard-" + inner_->name(); }
  std::size_t dim() const override { return inner_->dim(); }
  std::size_t block_bytes(std::size_t capacity) const override { return inner_->block_bytes(capacity); }
  std::size_t granule() const override { return inner_->granule(); }
  std::size_t range_granule() const override { return inner_->range_granule(); }

  void encode(kvc::ConstRows rows, std::byte* block, std::size_t capacity, std::size_t first) const override {
    std::vector<float> turned(rows.count * dim(), 0.0f);
    add_turned(rows, {turned.data(), rows.count, dim()});
    inner_->encode({turned.data(), rows.count, dim()}, block, capacity, first);
  }
  void decode(const std::byte* block, std::size_t capacity, std::size_t first, kvc::Rows<float> rows) const override {
    std::vector<float> turned(rows.count * dim());
    inner_->decode(block, capacity, first, {turned.data(), rows.count, dim()});
    for (std::size_t row = 0; row < rows.count; ++row) std::fill(rows[row].begin(), rows[row].end(), 0.0f);
    add_turned({turned.data(), rows.count, dim()}, rows);  // the matrix is its own inverse
  }

  std::size_t prepared_dim() const override { return dim(); }
  void prepare(kvc::ConstRows queries, kvc::Rows<float> prepared) const override {
    ++prepared_calls;
    for (std::size_t row = 0; row < prepared.count; ++row) std::fill(prepared[row].begin(), prepared[row].end(), 0.0f);
    add_turned(queries, prepared);
  }
  void scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
              const kvc::kernels::Coefficients& queries, const kvc::kernels::Results& results) const override {
    inner_->scores(block, capacity, first, count, queries, results);
  }
  std::size_t sum_dim() const override { return dim(); }
  void accumulate(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                  const kvc::kernels::Coefficients& weights, const kvc::kernels::Results& results) const override {
    inner_->accumulate(block, capacity, first, count, weights, results);
  }
  void finish(kvc::ConstRows sums, kvc::Rows<float> out) const override {
    ++finished_calls;
    add_turned(sums, out);
  }

  mutable std::size_t prepared_calls = 0, finished_calls = 0;  // for the tests

 private:
  void add_turned(kvc::ConstRows rows, kvc::Rows<float> out) const {
    std::vector<float> row(dim());
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim()));
    for (std::size_t r = 0; r < rows.count; ++r) {
      std::copy(rows[r].begin(), rows[r].end(), row.begin());
      for (std::size_t half = 1; half < dim(); half *= 2)
        for (std::size_t i = 0; i < dim(); ++i)
          if ((i & half) == 0) {
            const float a = row[i], b = row[i + half];
            row[i] = a + b;
            row[i + half] = a - b;
          }
      for (std::size_t i = 0; i < dim(); ++i) out[r][i] += row[i] * scale;
    }
  }

  std::shared_ptr<const kvc::Codec> inner_;
};
