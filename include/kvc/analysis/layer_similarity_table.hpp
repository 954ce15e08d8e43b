#pragma once
/// The report of layer_similarity() as a text. Needs fmt and Eigen; paid for only by who includes this.
#include <fmt/format.h>

#include <cstddef>
#include <span>
#include <string>

#include "kvc/analysis/layer_similarity.hpp"

namespace kvc::inline KVC_ABI {

/// A line per pair of layers: mean, median and 5 % quantile of the cosine, mean distance, error of merging; keys, then
/// values. With `heads`, also a line per KV head.
inline std::string similarity_table(std::span<const LayerSimilarity> report, bool heads = false) {
  const auto side = [](const RowSimilarity& rows) {
    return fmt::format("{:>8.3f} {:>7.3f} {:>7.3f} {:>8.3f} {:>7.3f}", rows.mean_cosine, rows.median_cosine,
                       rows.low_cosine, rows.mean_distance, rows.error);
  };
  const std::string names =
      fmt::format("{:>8} {:>7} {:>7} {:>8} {:>7}", "cosine", "median", "5 %", "distance", "error");
  std::string table =
      fmt::format("{:<10}{:<41}  {}\n{:<10}{}  {}\n", "", "   keys", "   values", "layers", names, names);
  for (const LayerSimilarity& pair : report) {
    const auto line = [&](const std::string& name, const LayerSimilarity::Sides& sides) {
      table += fmt::format("{:<10}{}  {}\n", name, side(sides.keys), side(sides.values));
    };
    line(fmt::format("{}-{}", pair.pair.below, pair.pair.above), pair.all);
    for (std::size_t head = 0; heads && head < pair.heads.size(); ++head)
      line(fmt::format("  head {}", head), pair.heads[head]);
  }
  return table;
}

}  // namespace kvc
