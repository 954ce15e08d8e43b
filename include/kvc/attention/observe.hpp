#pragma once
#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/attention/partial.hpp"

namespace kvc::inline KVC_ABI::attention {

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
                               std::span<float> target, Workspace& workspace) {
  const auto& table = kernels::active();
  const std::size_t rows = head.keys().rows();
  const kernels::DenseLayout as_block{Scalar::f32, kept.stride, TileLanes};
  Workspace::Frame frame(workspace);
  const auto sums = frame.take(group_sums ? rows : 0);
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

/// The factors exp(chunk maximum - log-sum-exp) that make probabilities out of the kept weights of a finished tile: per chunk
/// [heads, rows / heads], query row t * heads + h at [h, t].
class KeptFactors {
 public:
  KeptFactors(const KeptScores& kept, const Partial& state, std::size_t heads, Workspace::Frame& frame)
      : kept_(kept), rows_(state.rows), heads_(heads), memory_(frame.take(3 * state.rows)) {
    for (std::size_t row = 0; row < rows_; ++row)
      minus_lse()[place(row)] = state.sum[row] > 0 ? -state.log_sum_exp(row) : 0.0f;  // its maxima are -inf
  }
  const float* of_chunk(std::size_t chunk) {
    float *maxima = minus_lse() + rows_, *factors = maxima + rows_;
    for (std::size_t row = 0; row < rows_; ++row) maxima[place(row)] = kept_.maxima[chunk / ChunkRows * rows_ + row];
    kernels::active().exponentials(maxima, minus_lse(), rows_, factors);
    return factors;
  }

 private:
  float* minus_lse() const { return memory_.data(); }
  std::size_t place(std::size_t row) const { return row % heads_ * (rows_ / heads_) + row / heads_; }

  const KeptScores& kept_;
  std::size_t rows_, heads_;
  std::span<float> memory_;
};

/// Adds what the queries of a finished tile gave key rows [0, end) to column sums: sums[h * stride + row] per query head h
/// of a group of `heads`, or with 1 head the group together. Query row t * heads + h counts for head h.
inline void add_kept_sums(const KeptScores& kept, const Partial& state, std::size_t end, std::size_t heads, float* sums,
                          std::size_t stride, Workspace& workspace) {
  const auto& table = kernels::active();
  const std::size_t each = state.rows / heads;
  const kernels::DenseLayout of_head{Scalar::f32, heads * kept.stride, TileLanes};
  Workspace::Frame frame(workspace);
  KeptFactors kept_factors(kept, state, heads, frame);
  for (std::size_t chunk = 0; chunk < end; chunk += ChunkRows) {
    const float* factors = kept_factors.of_chunk(chunk);
    for (std::size_t h = 0; h < heads; ++h)
      table.dense_product(of_head, kept.weights + h * kept.stride + chunk,
                          {0, std::min(ChunkRows, end - chunk), 0, each}, {factors + h * each, 1, each},
                          {sums + h * stride + chunk, stride, true});
  }
}

/// Raises maxima[h * stride + row] to the largest probability that a query of head h gave key row `row`, of the rows [0, end).
inline void raise_kept_maxima(const KeptScores& kept, const Partial& state, std::size_t end, std::size_t heads,
                              float* maxima, std::size_t stride, Workspace& workspace) {
  const auto& table = kernels::active();
  const std::size_t each = state.rows / heads;
  Workspace::Frame frame(workspace);
  KeptFactors kept_factors(kept, state, heads, frame);
  for (std::size_t chunk = 0; chunk < end; chunk += ChunkRows) {
    const float* factors = kept_factors.of_chunk(chunk);
    for (std::size_t h = 0; h < heads; ++h)
      table.column_maxima(kept.weights + h * kept.stride + chunk, heads * kept.stride, each,
                          std::min(ChunkRows, end - chunk), factors + h * each, maxima + h * stride + chunk);
  }
}

/// Whether row i of the keys and of the values is slot i.
inline bool rows_are_slots(const HeadStore& head) {
  return head.in_step() && head.keys().map().identity() && head.keys().rows() == head.size();
}

/// Column sums of the attention of the newest slots' tokens, whose queries these are, if rows_are_slots(): sums[g * stride + slot] per query head g.
inline void newest_sums(const HeadReader& reader, const Queries& queries, float* sums, std::size_t stride) {
  const std::size_t group = queries.group, slots = reader.head().size(), seen_first = slots - queries.tokens + 1;
  const std::size_t step = tile_tokens(queries.tokens, group, slots);
  for (std::size_t g = 0; g < group; ++g) std::fill_n(sums + g * stride, slots, 0.0f);
  for (std::size_t first = 0; first < queries.tokens; first += step) {
    const Queries tile = queries.part(first, std::min(step, queries.tokens - first));
    const std::size_t end = seen_first + first + tile.tokens - 1;
    Workspace::Frame frame(reader.workspace());
    const KeptScores kept = room_for_scores(tile.rows(), end, frame);
    const auto memory = frame.take(Partial::floats(tile.rows(), 0));
    Partial state = Partial::empty_in(memory, tile.rows(), 0);
    state.values = nullptr;
    state.add_sinks(tile);
    PreparedQueries prepared = reader.prepare(tile, frame);
    attend_rows(reader, 0, end, prepared, seen_first + first, state, kept);
    add_kept_sums(kept, state, end, group, sums, stride, reader.workspace());
  }
}

/// Plain products of `queries` with the key of every slot: target [tokens * group, slots], without scale, cap and weights of
/// slots.
inline void slot_products(const HeadReader& reader, const Queries& queries, std::span<float> target) {
  const HeadStore& head = reader.head();
  const std::size_t rows = head.keys().rows(), slots = head.size();
  constexpr std::size_t TileTokens = 16;
  Workspace::Frame frame(reader.workspace());
  const auto scores = frame.take(TileTokens * queries.group * rows);
  for (std::size_t first = 0; first < queries.tokens; first += TileTokens) {
    const Queries tile = queries.part(first, std::min(TileTokens, queries.tokens - first));
    Workspace::Frame inner(reader.workspace());
    PreparedQueries prepared = reader.prepare(tile, inner);
    reader.products(0, rows, prepared, {scores.data(), rows, false});
    for (std::size_t row = 0; row < tile.rows(); ++row)
      to_slots(head, scores.data() + row * rows, target.data() + (first * queries.group + row) * slots);
  }
}

/// Logits of `queries` over every slot: target [tokens * group, slots]; -inf where a query does not see the slot. Token t
/// sees the first `seen_first` + t slots, of a layer with a window those that stand in it.
inline void slot_logits(const HeadReader& reader, const Queries& queries, std::size_t seen_first,
                        std::span<float> target) {
  const HeadStore& head = reader.head();
  const std::size_t rows = head.keys().rows(), slots = head.size();
  constexpr std::size_t TileTokens = 16;
  Workspace::Frame frame(reader.workspace());
  const auto scores = frame.take(TileTokens * queries.group * rows);
  for (std::size_t first = 0; first < queries.tokens; first += TileTokens) {
    const std::size_t tokens = std::min(TileTokens, queries.tokens - first);
    const Queries tile = queries.part(first, tokens);
    Workspace::Frame inner(reader.workspace());
    PreparedQueries prepared = reader.prepare(tile, inner);
    reader.scores(0, rows, prepared, {scores.data(), rows, false});
    for (std::size_t row = 0; row < tile.rows(); ++row) {
      float* source = scores.data() + row * rows;
      if (const float* bias = reader.bias(0))
        for (std::size_t i = 0; i < rows; ++i) source[i] += bias[i];
      float* line = target.data() + (first * queries.group + row) * slots;
      to_slots(head, source, line);
      std::fill(line + std::min(slots, seen_first + first + row / queries.group), line + slots, MinusInfinity);
      if (const Position window = reader.window())
        std::fill_n(line, slots_before_window(head, window, tile.positions[row / queries.group]), MinusInfinity);
    }
  }
}

/// Softmax of every row of `logits` [rows, count], in place. Rows take turns over `sink_logits`, if there are any: logits that
/// are in the sum besides those of the row.
inline void softmax_rows(std::span<float> logits, std::size_t rows, std::size_t count,
                         std::span<const float> sink_logits) {
  for (std::size_t row = 0; row < rows; ++row) {
    float maximum = MinusInfinity, sum = 0, correction = 0;
    if (!sink_logits.empty()) {
      maximum = sink_logits[row % sink_logits.size()];
      sum = 1;
    }
    float* line = logits.data() + row * count;
    kernels::active().softmax_update(line, count, 1, count, nullptr, &maximum, &sum, &correction);
    const float factor = sum > 0 ? 1.0f / sum : 0.0f;
    kernels::active().scale_rows(line, count, 1, count, &factor);
  }
}

}  // namespace kvc::inline KVC_ABI::attention
