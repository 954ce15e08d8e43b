#pragma once
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvc/codec/dense.hpp"

/// Rows as their coordinates in a basis of `rank` directions, which each head finds in the rows that it seals first: the
/// directions of largest variance, by orthogonal iteration. A query is projected once before it meets the rows, and the sum
/// of values is taken back once at the end.
class LowRankCodec final : public kvc::Codec {
 public:
  LowRankCodec(kvc::Role role, std::size_t dim, std::size_t rank, std::vector<float> basis = {})
      : role_(role), dim_(dim), rank_(rank), basis_(std::move(basis)), coordinates_({kvc::Scalar::f32}, role, rank) {}

  std::string name() const override { return "low-rank-" + std::to_string(rank_); }
  std::size_t dim() const override { return dim_; }
  std::size_t block_bytes(std::size_t capacity) const override { return coordinates_.block_bytes(capacity); }
  std::size_t range_granule() const override { return coordinates_.range_granule(); }
  std::size_t own_bytes() const override { return basis_.size() * sizeof(float); }

  std::shared_ptr<const kvc::Codec> fit(kvc::ConstRows rows, std::span<const kvc::Position>) const override {
    std::vector<double> basis(rank_ * dim_);
    for (std::size_t i = 0; i < basis.size(); ++i)
      basis[i] = std::sin(double(1 + i * i % 101));  // anything independent
    for (int step = 0; step < 30; ++step) {
      std::vector<double> next(basis.size(), 0.0);  // rowsᵀ · rows · basis
      for (std::size_t r = 0; r < rows.count; ++r)
        for (std::size_t k = 0; k < rank_; ++k) {
          double dot = 0;
          for (std::size_t c = 0; c < dim_; ++c) dot += rows[r][c] * basis[k * dim_ + c];
          for (std::size_t c = 0; c < dim_; ++c) next[k * dim_ + c] += dot * rows[r][c];
        }
      orthonormalise(next);
      basis = std::move(next);
    }
    return std::make_shared<LowRankCodec>(role_, dim_, rank_, std::vector<float>(basis.begin(), basis.end()));
  }

  void encode(kvc::ConstRows rows, std::byte* block, std::size_t capacity, std::size_t first) const override {
    std::vector<float> projected(rows.count * rank_);
    project(rows, {projected.data(), rows.count, rank_});
    coordinates_.encode({projected.data(), rows.count, rank_}, block, capacity, first);
  }
  void decode(const std::byte* block, std::size_t capacity, std::size_t first, kvc::Rows<float> rows) const override {
    std::vector<float> projected(rows.count * rank_);
    coordinates_.decode(block, capacity, first, {projected.data(), rows.count, rank_});
    for (std::size_t row = 0; row < rows.count; ++row) std::fill(rows[row].begin(), rows[row].end(), 0.0f);
    finish({projected.data(), rows.count, rank_}, rows);
  }

  std::size_t prepared_dim() const override { return rank_; }
  void prepare(kvc::ConstRows queries, kvc::Rows<float> prepared) const override { project(queries, prepared); }
  void scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
              const kvc::kernels::Coefficients& queries, const kvc::kernels::Results& results) const override {
    coordinates_.scores(block, capacity, first, count, queries, results);
  }
  std::size_t sum_dim() const override { return rank_; }
  void accumulate(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                  const kvc::kernels::Coefficients& weights, const kvc::kernels::Results& results) const override {
    coordinates_.accumulate(block, capacity, first, count, weights, results);
  }
  void finish(kvc::ConstRows sums, kvc::Rows<float> out) const override {
    for (std::size_t r = 0; r < sums.count; ++r)
      for (std::size_t k = 0; k < rank_; ++k)
        for (std::size_t c = 0; c < dim_; ++c) out[r][c] += sums[r][k] * basis_[k * dim_ + c];
  }

 private:
  void project(kvc::ConstRows rows, kvc::Rows<float> projected) const {
    for (std::size_t r = 0; r < rows.count; ++r)
      for (std::size_t k = 0; k < rank_; ++k) {
        double dot = 0;
        for (std::size_t c = 0; c < dim_; ++c) dot += double(rows[r][c]) * basis_[k * dim_ + c];
        projected[r][k] = static_cast<float>(dot);
      }
  }
  void orthonormalise(std::vector<double>& basis) const {
    for (std::size_t k = 0; k < rank_; ++k) {
      double* row = basis.data() + k * dim_;
      for (std::size_t j = 0; j < k; ++j) {
        double dot = 0;
        for (std::size_t c = 0; c < dim_; ++c) dot += row[c] * basis[j * dim_ + c];
        for (std::size_t c = 0; c < dim_; ++c) row[c] -= dot * basis[j * dim_ + c];
      }
      double norm = 0;
      for (std::size_t c = 0; c < dim_; ++c) norm += row[c] * row[c];
      norm = norm > 1e-20 ? 1 / std::sqrt(norm) : 0;
      for (std::size_t c = 0; c < dim_; ++c) row[c] *= norm;
    }
  }

  kvc::Role role_;
  std::size_t dim_, rank_;
  std::vector<float> basis_;  ///< [rank, dim], orthonormal; empty before fit()
  kvc::DenseCodec coordinates_;
};
