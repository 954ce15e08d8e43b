#pragma once
/// Whether a model's adjacent layers resemble each other enough to share directions (MiniCache). Needs Eigen; paid for only
/// by who includes this.
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <span>
#include <vector>

#include "kvc/eigen.hpp"
#include "kvc/policies/mini_cache.hpp"

namespace kvc::inline KVC_ABI {

/// The rows of one side, keys or values, in two adjacent layers, token by token.
struct RowSimilarity {
  double mean_cosine = 0, median_cosine = 0;
  double low_cosine = 0;     ///< 5 % of the tokens have less
  double mean_distance = 0;  ///< angle / pi; 0.5: unrelated
  /// What merging without retention does to the rows of both layers: RMS of the difference over RMS of the rows.
  double error = 0;
};

/// Two adjacent layers. The figures of the pair are over the tokens of all its heads, not means of theirs.
struct LayerSimilarity {
  struct Sides {
    RowSimilarity keys, values;
  };
  LayerPair pair;
  Sides all;
  std::vector<Sides> heads;  ///< per KV head

  /// That of the side which merging hurts more.
  double error() const { return std::max(all.keys.error, all.values.error); }
};

namespace detail {

/// Cosines and errors of any number of rows, until asked for the summary.
class SimilarityOfRows {
 public:
  /// `t` as in MiniCache.
  explicit SimilarityOfRows(double t) : t_(t) {}

  template <class Matrix>
  void add(const Matrix& below, const Matrix& here) {
    const auto x = below.template cast<double>(), y = here.template cast<double>();
    const Eigen::ArrayXd squares_below = x.rowwise().squaredNorm(), squares_here = y.rowwise().squaredNorm();
    const Eigen::ArrayXd norms = (squares_below * squares_here).sqrt();
    // A row of zeros is unrelated to the other one, which therefore keeps its direction.
    const Eigen::ArrayXd products = x.cwiseProduct(y).rowwise().sum().array();
    const Eigen::ArrayXd cosines = (norms > 0).select(products / norms, 0).max(-1).min(1);
    const Eigen::ArrayXd angles = cosines.acos(), turned = (norms > 0).select(angles, 0);
    // Rows at a distance of an angle a differ by 2 - 2 cos a, squared and over their squared norm.
    errors_ +=
        (2 * squares_below * (1 - (t_ * turned).cos()) + 2 * squares_here * (1 - ((1 - t_) * turned).cos())).sum();
    squares_ += squares_below.sum() + squares_here.sum();
    angles_ += angles.sum();
    cosines_.insert(cosines_.end(), cosines.begin(), cosines.end());
  }

  RowSimilarity summary() {
    if (cosines_.empty()) return {};
    std::sort(cosines_.begin(), cosines_.end());
    const auto count = static_cast<double>(cosines_.size());
    const Eigen::Map<const Eigen::ArrayXd> cosines(cosines_.data(), static_cast<Eigen::Index>(cosines_.size()));
    return {.mean_cosine = cosines.mean(),
            .median_cosine = quantile(0.5),
            .low_cosine = quantile(0.05),
            .mean_distance = angles_ / count / std::numbers::pi,
            .error = squares_ > 0 ? std::sqrt(errors_ / squares_) : 0};
  }

 private:
  /// Between the two nearest of the sorted cosines.
  double quantile(double share) const {
    const double place = share * static_cast<double>(cosines_.size() - 1);
    const auto low = static_cast<std::size_t>(place);
    return std::lerp(cosines_[low], cosines_[std::min(low + 1, cosines_.size() - 1)], place - std::floor(place));
  }

  double t_, errors_ = 0, squares_ = 0, angles_ = 0;
  std::vector<double> cosines_;
};

}  // namespace detail

/// Compares every layer of a filled cache with the one above it, head by head. The cache should hold every token densely
/// (Full) and have read a text of the kind that will come; `t` as in MiniCache. Throws Error (incompatible) where two layers
/// hold different tokens.
inline std::vector<LayerSimilarity> layer_similarity(const CacheCore& cache, double t = MiniCache{}.t) {
  const CacheShape& shape = cache.shape();
  std::vector<LayerSimilarity> report;
  for (std::size_t layer = 0; layer + 1 < shape.layers; ++layer) {
    LayerSimilarity similarity{.pair = {layer, layer + 1}, .all = {}, .heads = {}};
    detail::SimilarityOfRows all_keys(t), all_values(t);
    for (std::size_t head = 0; head < shape.kv_heads; ++head) {
      const HeadId low{std::uint32_t(layer), std::uint32_t(head)}, high{std::uint32_t(layer + 1), std::uint32_t(head)};
      if (cache.positions(low) != cache.positions(high))
        fail(ErrorCode::incompatible,
             {"layer_similarity: head ", head, " holds different tokens in layers ", layer, " and ", layer + 1});
      const EigenHead below = gather(cache, low), here = gather(cache, high);
      detail::SimilarityOfRows keys(t), values(t);
      for (auto* side : {&keys, &all_keys}) side->add(below.keys, here.keys);
      for (auto* side : {&values, &all_values}) side->add(below.values, here.values);
      similarity.heads.push_back({keys.summary(), values.summary()});
    }
    similarity.all = {all_keys.summary(), all_values.summary()};
    report.push_back(std::move(similarity));
  }
  return report;
}

/// The most pairs, at most `most`, that have no layer in common and an error of `largest_error` at most; among those the
/// ones with the smallest sum of errors. `report`: of layer_similarity(). For MiniCache::chosen.
inline std::vector<LayerPair> choose_pairs(std::span<const LayerSimilarity> report, double largest_error,
                                           std::size_t most = std::numeric_limits<std::size_t>::max()) {
  constexpr double Impossible = std::numeric_limits<double>::infinity();
  const std::size_t edges = report.size();
  most = std::min(most, (edges + 1) / 2);
  // least[n][e]: the smallest sum of n errors among the first e entries of the report, neighbours excluding each other.
  std::vector<std::vector<double>> least(most + 1, std::vector<double>(edges + 1, 0));
  const auto with_last = [&](std::size_t n, std::size_t e) {
    const double error = report[e - 1].error();
    return error <= largest_error ? least[n - 1][e > 1 ? e - 2 : 0] + error : Impossible;
  };
  for (std::size_t n = 1; n <= most; ++n) {
    least[n][0] = Impossible;
    for (std::size_t e = 1; e <= edges; ++e) least[n][e] = std::min(least[n][e - 1], with_last(n, e));
  }
  std::size_t n = most;
  while (n > 0 && least[n][edges] == Impossible) --n;
  std::vector<LayerPair> pairs;
  for (std::size_t e = edges; n > 0;) {
    if (least[n][e] == least[n][e - 1]) {
      --e;
      continue;
    }
    pairs.push_back(report[e - 1].pair);
    e = e > 1 ? e - 2 : 0;
    --n;
  }
  std::reverse(pairs.begin(), pairs.end());
  return pairs;
}

}  // namespace kvc
