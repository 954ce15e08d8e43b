#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "kvc/policy/plan.hpp"
#include "kvc/views.hpp"
#include "kvc/words.hpp"

namespace kvc::inline KVC_ABI {

/// How the query heads that share a KV head become one.
enum class Reduce : std::uint8_t { sum, mean, max };
constexpr auto words_of(Reduce) {
  return words(word("sum", Reduce::sum), word("mean", Reduce::mean), word("max", Reduce::max));
}
/// How a score spreads to its neighbours along the tokens.
enum class Pooling : std::uint8_t { average, max };
constexpr auto words_of(Pooling) {
  return words(word("average", Pooling::average), word("max", Pooling::max));
}

/// Over which heads something is taken together.
enum class Scope : std::uint8_t {
  head,   ///< each head by itself
  layer,  ///< the heads of a layer
  cache,  ///< all heads of all layers
};

constexpr auto words_of(Scope) {
  return words(word("head", Scope::head), word("layer", Scope::layer), word("cache", Scope::cache));
}

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

/// Loops that take this constant number of slots at a time become vector instructions at -O2.
inline constexpr std::size_t SlotsAtOnce = 16;

/// Of `count` scores score(slot), the slot that loses against all others: NaN before the lowest score, the newer of equals.
template <class Score>
std::size_t lowest(std::size_t count, Score score) {
  // The slots are taken in stretches of this length; only the stretch with the lowest score is then searched for the slot.
  constexpr std::size_t Length = 16 * SlotsAtOnce;
  std::size_t lowest_begin = 0;
  float bound = Protected;
  for (std::size_t begin = 0; begin < count; begin += Length) {
    const std::size_t end = std::min(count, begin + Length), whole = begin + (end - begin) / SlotsAtOnce * SlotsAtOnce;
    float least[SlotsAtOnce];
    std::fill_n(least, SlotsAtOnce, Protected);
    for (std::size_t slot = begin; slot < whole; slot += SlotsAtOnce)
      for (std::size_t i = 0; i < SlotsAtOnce; ++i) {
        const float value = score(slot + i);
        const float ordered = value == value ? value : -Protected;
        least[i] = ordered < least[i] ? ordered : least[i];
      }
    for (std::size_t slot = whole; slot < end; ++slot)
      least[0] = score(slot) >= least[0] ? least[0] : std::isnan(score(slot)) ? -Protected : score(slot);
    const float found = *std::min_element(least, least + SlotsAtOnce);
    if (found > bound) continue;
    bound = found;
    lowest_begin = begin;
  }
  if (bound == -Protected)
    for (std::size_t slot = count; slot-- > 0;)
      if (std::isnan(score(slot))) return slot;
  std::size_t slot = std::min(count, lowest_begin + Length) - 1;
  while (slot > lowest_begin && score(slot) != bound) --slot;
  return slot;
}
inline std::size_t lowest(std::span<const float> scores) {
  return lowest(scores.size(), [scores](std::size_t slot) { return scores[slot]; });
}

/// Adds what a pass showed of each slot to a number that a policy keeps about it: slots[i].*member += the sum, mean or maximum
/// of column i of `attention`.
template <class Slot>
void add_columns(std::span<Slot> slots, float Slot::*member, ConstRows attention, Reduce how = Reduce::sum) {
  if (attention.count == 0) return;
  std::size_t slot = 0;
  if (attention.count == 1)  // the core has added up the group
    for (; slot + SlotsAtOnce <= slots.size(); slot += SlotsAtOnce) {
      float received[SlotsAtOnce];
      std::copy_n(attention.data + slot, SlotsAtOnce, received);
      for (std::size_t i = 0; i < SlotsAtOnce; ++i) slots[slot + i].*member += received[i];
    }
  for (; slot < slots.size(); ++slot) slots[slot].*member += reduce_column(attention, slot, how);
}

/// HeadView::window_sums, [group, slots]. Throws Error(missing_feed) if no query is kept: a prompt's end lets go of them.
inline ConstRows window_votes(const HeadView& head, std::size_t window) {
  const ConstRows sums = head.window_sums(window);
  if (sums.count == 0)
    fail(ErrorCode::missing_feed,
         "there are no queries to vote: a policy with a window acts when a prompt ends, which lets go of its queries");
  return sums;
}

/// The heads of a layer score alike: every token by the sum of what the heads that hold it say.
template <class P>
void share_scores(Layer<P> heads, ScoreSpans scores) {
  const auto same = [&](const Head<P>& head) { return std::ranges::equal(head.positions, heads[0].positions); };
  if (std::ranges::all_of(heads, same)) {
    for (const std::span<float> other : scores.subspan(1))
      for (std::size_t slot = 0; slot < other.size(); ++slot) scores[0][slot] += other[slot];
    for (const std::span<float> other : scores.subspan(1)) std::ranges::copy(scores[0], other.begin());
    return;
  }
  std::vector<std::pair<Position, float>> sums;
  for (std::size_t h = 0; h < heads.size(); ++h)
    for (std::size_t slot = 0; slot < heads[h].size(); ++slot)
      sums.emplace_back(heads[h].positions[slot], scores[h][slot]);
  std::ranges::stable_sort(sums, {}, &std::pair<Position, float>::first);
  std::size_t last = 0;
  for (std::size_t i = 1; i < sums.size(); ++i)
    if (sums[i].first == sums[last].first)
      sums[last].second += sums[i].second;
    else
      sums[++last] = sums[i];
  for (std::size_t h = 0; h < heads.size(); ++h)
    for (std::size_t slot = 0, i = 0; slot < heads[h].size(); ++slot) {
      while (sums[i].first != heads[h].positions[slot]) ++i;
      scores[h][slot] = sums[i].second;
    }
}

/// The length of a row. Squares are added up in double precision, in which those of no float overflow.
inline float norm(std::span<const float> row) {
  double squares = 0;
  for (const float x : row) squares += double(x) * double(x);
  return static_cast<float>(std::sqrt(squares));
}

/// Numbers become the shares of their exponentials in the sum of those.
inline void softmax(std::span<double> values) {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const double value : values) largest = std::max(largest, value);
  for (double& value : values) sum += value = std::exp(value - largest);
  for (double& value : values) value /= sum;
}

/// Makes the first `count` scores Protected, and returns the others.
inline std::span<float> protect_first(std::span<float> scores, std::size_t count) {
  count = std::min(count, scores.size());
  std::ranges::fill(scores.first(count), Protected);
  return scores.subspan(count);
}
/// Makes the last `count` scores Protected, and returns the others.
inline std::span<float> protect_last(std::span<float> scores, std::size_t count) {
  const std::size_t others = scores.size() - std::min(count, scores.size());
  std::ranges::fill(scores.subspan(others), Protected);
  return scores.first(others);
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

}  // namespace kvc::inline KVC_ABI
