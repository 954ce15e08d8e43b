#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kvc/policy/plan.hpp"
#include "kvc/views.hpp"

namespace kvc {

/// How the query heads that share a KV head become one.
enum class Reduce : std::uint8_t { sum, mean, max };
/// How a score spreads to its neighbours along the tokens.
enum class Pooling : std::uint8_t { average, max };

/// The score of a slot that a policy protects: it stays whatever the budget.
inline constexpr float Protected = std::numeric_limits<float>::infinity();

/// out[j] = sum, mean or max over rows[first], rows[first + step], …; column j may lie in [0, out.size()).
inline void reduce_rows(ConstRows rows, std::size_t first, std::size_t step, Reduce how, std::span<float> out) {
  std::fill(out.begin(), out.end(), how == Reduce::max ? -std::numeric_limits<float>::infinity() : 0.0f);
  std::size_t count = 0;
  for (std::size_t row = first; row < rows.count; row += step, ++count) {
    const float* from = rows[row].data();
    if (how == Reduce::max)
      for (std::size_t j = 0; j < out.size(); ++j) out[j] = std::max(out[j], from[j]);
    else
      for (std::size_t j = 0; j < out.size(); ++j) out[j] += from[j];
  }
  if (how == Reduce::mean && count > 1)
    for (float& value : out) value /= static_cast<float>(count);
}

/// The same over all rows, of one column.
inline float reduce_column(ConstRows rows, std::size_t column, Reduce how) {
  const float* value = rows.data + column;
  float result = *value;
  for (std::size_t row = 1; row < rows.count; ++row) {
    value += rows.stride;
    result = how == Reduce::max ? std::max(result, *value) : result + *value;
  }
  return how == Reduce::mean ? result / static_cast<float>(rows.count) : result;
}

/// Pooling with stride 1 and an odd `kernel`, same length out. The average divides by the kernel at the borders too (it
/// counts the zero padding, as PyTorch does by default), which damps the first and last tokens.
inline void pool(std::span<const float> in, std::size_t kernel, Pooling how, std::span<float> out) {
  const std::size_t reach = kernel / 2;
  for (std::size_t j = 0; j < in.size(); ++j) {
    const std::size_t begin = j < reach ? 0 : j - reach, end = std::min(in.size(), j + reach + 1);
    if (how == Pooling::max) {
      out[j] = *std::max_element(in.begin() + std::ptrdiff_t(begin), in.begin() + std::ptrdiff_t(end));
      continue;
    }
    float sum = 0;
    for (std::size_t i = begin; i < end; ++i) sum += in[i];
    out[j] = sum / static_cast<float>(kernel);
  }
}

/// The slot that loses against all others: NaN before the lowest score, the newer of equals.
inline std::size_t lowest(std::span<const float> scores) {
  constexpr std::size_t Strip = 16;  // independent minima, so that the compiler can use vectors
  float least[Strip];
  std::int32_t unordered[Strip] = {};
  std::fill_n(least, Strip, Protected);
  std::size_t slot = 0;
  for (; slot + Strip <= scores.size(); slot += Strip) {
    const float* score = scores.data() + slot;
    for (std::size_t i = 0; i < Strip; ++i) least[i] = score[i] < least[i] ? score[i] : least[i];
    for (std::size_t i = 0; i < Strip; ++i) unordered[i] |= score[i] != score[i];
  }
  for (; slot < scores.size(); ++slot) {
    least[0] = scores[slot] < least[0] ? scores[slot] : least[0];
    unordered[0] |= std::isnan(scores[slot]);
  }
  const float bound = *std::min_element(least, least + Strip);
  if (std::find(unordered, unordered + Strip, 1) != unordered + Strip)
    for (slot = scores.size(); slot-- > 0;)
      if (std::isnan(scores[slot])) return slot;
  for (slot = scores.size(); slot-- > 1;)
    if (scores[slot] == bound) break;
  return slot;
}

/// Keeps every Protected slot, even beyond `total`, then fills up to `total` with the best of the others.
inline void keep_best(Plan& plan, std::span<const float> scores, std::size_t total) {
  if (scores.size() == total + 1) {  // a decode step: one slot goes
    const std::size_t loser = lowest(scores);
    if (scores[loser] != Protected) plan.drop(loser);
    return;
  }
  plan.drop_all();
  for (std::size_t slot = 0; slot < scores.size(); ++slot)
    if (scores[slot] == Protected) plan.keep(slot);
  plan.top(scores, total);
}

}  // namespace kvc
