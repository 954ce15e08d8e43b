#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "kvc/attention/head_reader.hpp"
#include "kvc/attention/value_order.hpp"

namespace kvc::inline KVC_ABI::attention {

/// Attention over part of the rows, not yet divided by its sum: per query row its largest logit, the sum of
/// exp(logit - largest), and the weighted sum of values. Partial results of disjoint rows merge exactly.
struct Partial {
  float* maximum = nullptr;  ///< [rows]
  float* sum = nullptr;      ///< [rows]
  float* values = nullptr;   ///< [rows, stride], laid out as SumLayout says; null: only maximum and sum are wanted
  std::size_t rows = 0, stride = 0;

  /// Floats of a state of `rows` query rows whose sums are `width` floats each (SumLayout::width).
  static std::size_t floats(std::size_t rows, std::size_t width) { return rows * (2 + width); }
  /// A state that lies in memory of floats(rows, width), as it was left there.
  static Partial over(std::span<float> memory, std::size_t rows, std::size_t width) {
    return {memory.data() + rows * width, memory.data() + rows * width + rows, memory.data(), rows, width};
  }
  /// The same, empty.
  static Partial empty_in(std::span<float> memory, std::size_t rows, std::size_t width) {
    std::fill_n(memory.data(), rows * width, 0.0f);
    std::fill_n(memory.data() + rows * width, rows, MinusInfinity);
    std::fill_n(memory.data() + rows * width + rows, rows, 0.0f);
    return over(memory, rows, width);
  }

  /// The logits that have no value are in the sums before any row is. Of several partial results, one has them.
  void add_sinks(const Queries& queries) const {
    if (queries.sink_logits.empty()) return;
    for (std::size_t row = 0; row < rows; ++row) maximum[row] = queries.sink_logits[row % queries.group];
    std::fill_n(sum, rows, 1.0f);
  }

  /// Takes in the other rows' result.
  void merge(const Partial& other) {
    for (std::size_t row = 0; row < rows; ++row) {
      if (other.sum[row] == 0) continue;
      const float together = std::max(maximum[row], other.maximum[row]);
      const float mine = sum[row] == 0 ? 0.0f : std::exp(maximum[row] - together);
      const float theirs = std::exp(other.maximum[row] - together);
      maximum[row] = together;
      sum[row] = sum[row] * mine + other.sum[row] * theirs;
      float* out = values + row * stride;
      const float* in = other.values + row * stride;
      for (std::size_t c = 0; c < stride; ++c) out[c] = out[c] * mine + in[c] * theirs;
    }
  }
  float log_sum_exp(std::size_t row) const { return sum[row] > 0 ? maximum[row] + std::log(sum[row]) : MinusInfinity; }
  /// Turns the sums of codecs that have sums of their own into rows; once, before finish().
  void finish_sums(const RowStore& value_rows) const {
    for (const auto& codec : value_rows.transforming())
      if (const std::size_t dim = codec->sum_dim())
        codec->finish({values + SumLayout::begin_of(*codec, value_rows), rows, dim, stride},
                      {values, rows, value_rows.dim(), stride});
  }
  /// Row `row` of the attention output; zeros if it saw nothing.
  void finish(std::size_t row, std::span<float> out) const {
    const float factor = sum[row] > 0 ? 1.0f / sum[row] : 0.0f;
    std::copy_n(values + row * stride, out.size(), out.data());
    kernels::active().scale_rows(out.data(), out.size(), 1, out.size(), &factor);
  }
};

/// Query rows of a prompt that are computed together: enough to reuse what a kernel unpacks, few enough for the cache.
inline constexpr std::size_t TileQueryRows = 192;

/// Tokens of a tile whose scores over `keys` key rows are held at once: they stay in the second-level cache, unless the
/// kernels would suffer. All `tokens` come in tiles of about one size.
constexpr std::size_t tile_tokens(std::size_t tokens, std::size_t group, std::size_t keys) {
  constexpr std::size_t Floats = std::size_t{3} << 17, Least = 48, Even = 12;  // Even: blocks of rows come out full
  const std::size_t rows = std::clamp(Floats / std::max<std::size_t>(keys, 1) / Even * Even, Least, TileQueryRows);
  const std::size_t most = std::max<std::size_t>(1, rows / group), all = std::max<std::size_t>(1, tokens);
  return divide_up(all, divide_up(all, most));
}

/// Keeps what decode already computed, for policies that want the probabilities of the pass.
struct KeptScores {
  float* weights = nullptr;  ///< [rows, stride]: exp(logit - the chunk's maximum), in key row order
  float* maxima = nullptr;   ///< [chunks, rows]: that maximum
  std::size_t stride = 0;
};

/// Room for the scores of `rows` queries over `keys` key rows.
inline KeptScores room_for_scores(std::size_t rows, std::size_t keys, Workspace::Frame& frame) {
  std::size_t stride = round_up(keys, TileLanes);    // read back as whole tiles
  if (stride % ChunkRows == 0) stride += TileLanes;  // powers of two apart, rows share sets of the caches
  const auto memory = frame.take(rows * (stride + divide_up(keys, ChunkRows)));
  return {memory.data(), memory.data() + rows * stride, stride};
}

/// What a chunk that no selected slot touches leaves behind.
inline void skip_chunk(const KeptScores& kept, std::size_t chunk, std::size_t count, std::size_t rows) {
  if (!kept.weights) return;
  for (std::size_t row = 0; row < rows; ++row) std::fill_n(kept.weights + row * kept.stride + chunk, count, 0.0f);
  std::fill_n(kept.maxima + chunk / ChunkRows * rows, rows, MinusInfinity);
}

/// Adds rows [begin, end) of a head whose keys and values lie in the same order. `limit` gives, per token, the rows its
/// queries may see: [0, limit_first + token); pass rows() - tokens + 1 for tokens that were appended last.
inline void attend_rows(const HeadReader& reader, std::size_t begin, std::size_t end, PreparedQueries& queries,
                        std::size_t limit_first, Partial& state, const KeptScores& kept = {}) {
  const auto& table = kernels::active();
  const kernels::Scope pass;
  const std::size_t rows = queries.rows();
  Workspace::Frame frame(reader.workspace());
  const auto memory = frame.take(rows * ChunkRows + rows);
  float* correction = memory.data() + rows * ChunkRows;
  const WindowMask window = reader.window_of(queries.queries(), frame);
  for (std::size_t chunk = begin; chunk < end; chunk += ChunkRows) {
    const std::size_t stop = std::min(chunk + ChunkRows, end), count = stop - chunk;
    if (reader.skips(chunk, stop) || window.hides_all(chunk, stop)) {
      skip_chunk(kept, chunk, count, rows);
      continue;
    }
    float* scores = kept.weights ? kept.weights + chunk : memory.data();
    const std::size_t stride = kept.weights ? kept.stride : ChunkRows;
    reader.scores(chunk, stop, queries, {scores, stride, false});
    for (std::size_t token = 0; token < queries.tokens(); ++token) {
      const std::size_t limit = limit_first + token;
      if (limit >= stop) break;
      const std::size_t visible = limit > chunk ? limit - chunk : 0;
      for (std::size_t g = 0; g < queries.group(); ++g)
        std::fill(scores + (token * queries.group() + g) * stride + visible,
                  scores + (token * queries.group() + g) * stride + count, MinusInfinity);
    }
    window.apply(chunk, stop, queries.group(), scores, stride);
    table.softmax_update(scores, stride, rows, count, reader.bias(chunk), state.maximum, state.sum, correction);
    if (state.values) {
      table.scale_rows(state.values, state.stride, rows, state.stride, correction);
      reader.accumulate(chunk, stop, {scores, rows, stride}, {state.values, state.stride, true});
    }
    if (kept.maxima) std::copy_n(state.maximum, rows, kept.maxima + chunk / ChunkRows * rows);
  }
}

/// The same over all rows of a head whose keys and values lie in different orders: every weight first, then each goes to
/// its value's row.
inline void attend_out_of_step(const HeadReader& reader, PreparedQueries& queries, std::size_t limit_first,
                               Partial& state, const KeptScores& kept = {}) {
  const auto& table = kernels::active();
  const kernels::Scope pass;
  const HeadStore& head = reader.head();
  const std::size_t rows = queries.rows(), key_rows = head.keys().rows(), value_rows = head.values().rows();
  const std::size_t stride = kept.weights ? kept.stride : key_rows;
  Workspace::Frame frame(reader.workspace());
  const auto memory = frame.take(kept.weights ? rows : rows * key_rows + rows);
  float* correction = memory.data() + memory.size() - rows;
  float* weights = kept.weights ? kept.weights : memory.data();
  reader.scores(0, key_rows, queries, {weights, stride, false});
  for (std::size_t row = 0; row < rows; ++row) {
    const std::size_t limit = std::min(limit_first + row / queries.group(), key_rows);
    std::fill(weights + row * stride + limit, weights + row * stride + key_rows, MinusInfinity);
  }
  reader.window_of(queries.queries(), frame).apply(0, key_rows, queries.group(), weights, stride);
  table.softmax_update(weights, stride, rows, key_rows, reader.bias(0), state.maximum, state.sum, correction);
  for (std::size_t chunk = 0; kept.maxima && chunk * ChunkRows < key_rows; ++chunk)
    std::copy_n(state.maximum, rows, kept.maxima + chunk * rows);
  if (!state.values) return;
  table.scale_rows(state.values, state.stride, rows, state.stride, correction);
  const ValueOrder order(head, frame);
  const auto moved = frame.take(rows * value_rows);
  for (std::size_t row = 0; row < rows; ++row) order.move(weights + row * stride, moved.data() + row * value_rows);
  reader.accumulate(0, value_rows, {moved.data(), rows, value_rows}, {state.values, state.stride, true});
}

/// Rows [begin, end) of any head; a head out of step takes all its rows at once and needs begin 0 and end rows().
inline void attend(const HeadReader& reader, std::size_t begin, std::size_t end, PreparedQueries& queries,
                   std::size_t limit_first, Partial& state, const KeptScores& kept = {}) {
  if (reader.head().in_step())
    attend_rows(reader, begin, end, queries, limit_first, state, kept);
  else
    attend_out_of_step(reader, queries, limit_first, state, kept);
}

}  // namespace kvc::inline KVC_ABI::attention
