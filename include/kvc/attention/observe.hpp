#pragma once
#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/attention/partial.hpp"

namespace kvc::attention {

/// Slot order out of row order: target[slot] = row_values[row of the slot's key].
inline void to_slots(const HeadStore& head, const float* row_values, float* target) {
  if (head.keys().map().identity()) {
    std::copy_n(row_values, head.size(), target);
    return;
  }
  const std::int32_t* rows = head.keys().map().entries().data();
  for (std::size_t slot = 0, slots = head.size(); slot < slots; ++slot) target[slot] = row_values[rows[slot]];
}

/// Probabilities of a finished decode step out of what it kept: target [group, slots], or their sums over the group
/// [1, slots]. Both are products of the chunks' factors exp(chunk maximum - lse) and the kept weights.
inline void kept_probabilities(const HeadStore& head, const KeptScores& kept, const Partial& state, bool group_sums,
                               std::span<float> target) {
  const auto& table = kernels::active();
  const std::size_t rows = head.keys().rows();
  const kernels::DenseLayout as_block{Scalar::f32, kept.stride, kernels::TileLanes};
  auto sums = detail::scratch<struct GroupSumsPurpose>(group_sums ? rows : 0);
  float log_sum_exp[64];  // CacheShape::validate: at most 64 query heads share a KV head
  for (std::size_t row = 0; row < state.rows; ++row) log_sum_exp[row] = state.log_sum_exp(row);
  for (std::size_t chunk = 0; chunk < rows; chunk += ChunkRows) {
    const std::size_t count = std::min(ChunkRows, rows - chunk);
    float factors[64];
    for (std::size_t row = 0; row < state.rows; ++row) {
      const float maximum = kept.maxima[chunk / ChunkRows * state.rows + row];
      factors[row] = maximum == MinusInfinity ? 0.0f : std::exp(maximum - log_sum_exp[row]);
    }
    if (group_sums)
      table.dense_product(as_block, kept.weights + chunk, {0, count, 0, state.rows}, {factors, 1, state.rows},
                          {sums.data() + chunk, rows, false});
    else
      table.scale_rows(kept.weights + chunk, kept.stride, state.rows, count, factors);
  }
  if (group_sums) return to_slots(head, sums.data(), target.data());
  for (std::size_t row = 0; row < state.rows; ++row)
    to_slots(head, kept.weights + row * kept.stride, target.data() + row * head.size());
}

/// Column sums of the attention of the tokens that were appended last, over key rows [begin, end): sums[g * stride + row -
/// begin] for every query head g of the group; stride 0 adds the group up. `lse` [tokens * group] comes from the pass
/// itself; load(first, tokens) gives the queries of some tokens, a tile at a time so that they stay in the nearest cache.
template <class Load>
void column_sums(const HeadReader& reader, std::size_t begin, std::size_t end, std::size_t all_tokens,
                 std::size_t group, const float* lse, float* sums, std::size_t stride, Load load) {
  const auto& table = kernels::active();
  constexpr std::size_t TileTokens = 32;
  const std::size_t count = end - begin, limit_first = reader.rows() - all_tokens + 1;
  for (std::size_t g = 0; g < group; ++g) std::fill_n(sums + g * stride, count, 0.0f);
  auto scores = detail::scratch<struct SumsPurpose>(TileTokens * group * count);
  for (std::size_t first = 0; first < all_tokens; first += TileTokens) {
    const std::size_t tokens = std::min(TileTokens, all_tokens - first);
    if (limit_first + first + tokens - 1 <= begin) continue;
    const Queries tile = load(first, tokens);
    reader.scores(begin, end, tile, {scores.data(), count, false});
    for (std::size_t row = 0; row < tile.rows(); ++row) {
      const std::size_t limit = limit_first + first + row / group;
      if (limit <= begin) continue;
      table.probabilities(scores.data() + row * count, reader.bias(begin), std::min(limit - begin, count),
                          lse[first * group + row], sums + row % group * stride, true);
    }
  }
}

/// Logits of `queries` over every slot: target [tokens * group, slots]; -inf where a query does not see the slot. Token t
/// sees the first `seen_first` + t slots.
inline void slot_logits(const HeadReader& reader, const Queries& queries, std::size_t seen_first,
                        std::span<float> target) {
  const HeadStore& head = reader.head();
  const std::size_t rows = head.keys().rows(), slots = head.size();
  constexpr std::size_t TileTokens = 16;
  auto scores = detail::scratch<struct LogitsPurpose>(TileTokens * queries.group * rows);
  for (std::size_t first = 0; first < queries.tokens; first += TileTokens) {
    const std::size_t tokens = std::min(TileTokens, queries.tokens - first);
    const Queries tile = queries.part(first, tokens);
    reader.scores(0, rows, tile, {scores.data(), rows, false});
    for (std::size_t row = 0; row < tile.rows(); ++row) {
      float* source = scores.data() + row * rows;
      if (const float* bias = reader.bias(0))
        for (std::size_t i = 0; i < rows; ++i) source[i] += bias[i];
      float* line = target.data() + (first * queries.group + row) * slots;
      to_slots(head, source, line);
      std::fill(line + std::min(slots, seen_first + first + row / queries.group), line + slots, MinusInfinity);
    }
  }
}

/// Softmax of every row of `logits` [rows, count], in place.
inline void softmax_rows(std::span<float> logits, std::size_t rows, std::size_t count) {
  for (std::size_t row = 0; row < rows; ++row) {
    float maximum = MinusInfinity, sum = 0, correction = 0;
    float* line = logits.data() + row * count;
    kernels::active().softmax_update(line, count, 1, count, nullptr, &maximum, &sum, &correction);
    const float factor = sum > 0 ? 1.0f / sum : 0.0f;
    kernels::active().scale_rows(line, count, 1, count, &factor);
  }
}

}  // namespace kvc::attention
