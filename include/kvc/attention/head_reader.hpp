#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "kvc/attention/piece_list.hpp"
#include "kvc/attention/rotary.hpp"
#include "kvc/kernels/dispatch.hpp"
#include "kvc/storage/head_store.hpp"

namespace kvc::inline KVC_ABI::attention {

static_assert(RowStore::PromptRows == ChunkRows, "blocks of prompts are chunks, which are read and prefetched whole");

inline constexpr float MinusInfinity = -std::numeric_limits<float>::infinity();

/// What attention needs to know of the model and of the policy's placement.
struct Settings {
  const CacheShape* shape = nullptr;
  bool in_cache = false;  ///< tokens stand at their slot index, not at their position in the text
  Arithmetic arithmetic = Arithmetic::exact;
};

/// Queries of one KV head: row t * group + g belongs to token t, scaled by the logit scale already.
struct Queries {
  const float* data = nullptr;  ///< [tokens * group, head_dim], contiguous
  std::size_t tokens = 0, group = 1, dim = 0;
  /// Per token, where it stands in the cache minus where its rotary embedding put it; only read for in-cache positions.
  std::span<const std::int32_t> shifts = {};

  std::size_t rows() const { return tokens * group; }
  kernels::Coefficients coefficients() const { return {data, rows(), dim}; }
  /// The queries of tokens [first, first + count).
  Queries part(std::size_t first, std::size_t count) const {
    return {data + first * group * dim, count, group, dim, shifts.empty() ? shifts : shifts.subspan(first, count)};
  }
};

/// Copies the head's queries out of a layer's rows and scales them.
inline Queries load_queries(const CacheShape& shape, ConstRows layer_queries, std::size_t head,
                            std::span<float> memory) {
  const std::size_t group = shape.group(), dim = shape.head_dim;
  const float scale = shape.logit_scale();
  for (std::size_t t = 0; t < layer_queries.count; ++t)
    std::copy_n(layer_queries[t].data() + head * group * dim, group * dim, memory.data() + t * group * dim);
  const std::size_t all = layer_queries.count * group * dim;
  kernels::active().scale_rows(memory.data(), all, 1, all, &scale);
  return {memory.data(), layer_queries.count, group, dim, {}};
}

/// Multiplies column i of `rows` rows by norms[i].
inline void apply_norms(const float* norms, std::size_t count, float* x, std::size_t rows, std::size_t stride) {
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t i = 0; i < count; ++i) x[row * stride + i] *= norms[i];
}

/// Scores of `count` rows of a block from `begin` on, whatever multiple its codec wants ranges to begin on.
inline void piece_scores(const Piece& piece, std::size_t begin, std::size_t count, const kernels::Coefficients& queries,
                         const kernels::Results& results) {
  const std::size_t outside = begin % piece.codec->range_granule();
  if (outside == 0) {
    piece.codec->scores(piece.data, piece.capacity, begin, count, queries, results);
  } else {
    const std::size_t wide = outside + count;
    auto memory = detail::scratch<struct UnalignedScores>(queries.rows * wide);
    piece.codec->scores(piece.data, piece.capacity, begin - outside, wide, queries, {memory.data(), wide, false});
    for (std::size_t row = 0; row < queries.rows; ++row)
      std::copy_n(memory.data() + row * wide + outside, count, results.data + row * results.stride);
  }
  if (piece.norms) apply_norms(piece.norms + begin, count, results.data, queries.rows, results.stride);
}

/// results += weights · `count` rows of a block from `begin` on.
inline void piece_accumulate(const Piece& piece, std::size_t begin, std::size_t count,
                             const kernels::Coefficients& weights, const kernels::Results& results) {
  const std::size_t outside = begin % piece.codec->range_granule();
  if (outside == 0 && !piece.norms)
    return piece.codec->accumulate(piece.data, piece.capacity, begin, count, weights, results);
  const std::size_t wide = outside + count;
  auto memory = detail::scratch<struct UnalignedWeights>(weights.rows * wide);
  for (std::size_t row = 0; row < weights.rows; ++row) {
    std::fill_n(memory.data() + row * wide, outside, 0.0f);
    std::copy_n(weights.data + row * weights.stride, count, memory.data() + row * wide + outside);
  }
  if (piece.norms) apply_norms(piece.norms + begin, count, memory.data() + outside, weights.rows, wide);
  kernels::Coefficients moved = weights;
  moved.data = memory.data();
  moved.stride = wide;
  piece.codec->accumulate(piece.data, piece.capacity, begin - outside, wide, moved, results);
}

/// Names the scratch memory of a HeadReader's bias.
struct BiasPurpose;

/// How one head is read in one pass by one thread: its bias, its runs of equally shifted rows, and the arithmetic on row ranges.
/// It works in the thread's scratch memory, so a thread has at most one at a time.
class HeadReader {
 public:
  /// `next`: the head that will be read after this one, or null; nobody may be writing to it.
  HeadReader(const HeadStore& head, const Settings& settings, std::span<const std::uint8_t> selected = {},
             const HeadStore* next = nullptr)
      : head_(head),
        settings_(settings),
        keys_(head.keys().segments(), next ? next->keys().segments() : std::span<const Segment>()),
        values_(head.values().segments(), next ? next->values().segments() : std::span<const Segment>()) {
    bias_ = head.key_bias(detail::scratch<BiasPurpose>(round_up(head.keys().rows(), TileLanes)));
    if (!selected.empty()) mask_unselected(selected);
    if (settings.in_cache) find_runs();
  }

  const HeadStore& head() const { return head_; }
  std::size_t rows() const { return head_.keys().rows(); }
  const float* bias(std::size_t row) const { return bias_.empty() ? nullptr : bias_.data() + row; }
  bool skips(std::size_t begin, std::size_t end) const {
    return selects_ && std::all_of(bias_.begin() + std::ptrdiff_t(begin), bias_.begin() + std::ptrdiff_t(end),
                                   [](float b) { return b == MinusInfinity; });
  }

  /// Scores of key rows [begin, end), soft-capped, without bias: results[row][0 … end - begin).
  void scores(std::size_t begin, std::size_t end, const Queries& queries, const kernels::Results& results) const {
    if (!settings_.in_cache)
      score_rows(begin, end, queries.coefficients(), results);
    else
      score_shifted(begin, end, queries, results);
    if (const float cap = settings_.shape->softcap; cap > 0)
      for (std::size_t row = 0; row < queries.rows(); ++row)
        kernels::active().softcap(results.data + row * results.stride, end - begin, cap);
  }

  /// results += weights · value rows [begin, end).
  void accumulate(std::size_t begin, std::size_t end, const kernels::Coefficients& weights,
                  const kernels::Results& results) const {
    for_each_piece(values_, begin, end, [&](const Piece& piece, std::size_t row, std::size_t count) {
      kernels::Coefficients part = prepared(weights, values_, row);
      part.data += row - begin;
      part.weights = true;
      piece_accumulate(piece, piece.begin + (row - piece.first), count, part, results);
    });
  }

 private:
  struct Run {
    std::size_t end;
    std::int32_t shift;  // position in the text minus slot
  };

  /// Calls visit(piece, row, count) for the pieces of rows [begin, end), from `row` of the head on.
  template <class Visit>
  static void for_each_piece(PieceList& pieces, std::size_t begin, std::size_t end, Visit visit) {
    for (std::size_t row = begin; row < end;) {
      const Piece* piece = pieces.find(row);
      if (!piece) return;
      const std::size_t count = std::min(end, piece->end) - row;
      visit(*piece, row, count);
      row += count;
    }
  }

  void score_rows(std::size_t begin, std::size_t end, const kernels::Coefficients& queries,
                  const kernels::Results& results) const {
    for_each_piece(keys_, begin, end, [&](const Piece& piece, std::size_t row, std::size_t count) {
      piece_scores(piece, piece.begin + (row - piece.first), count, prepared(queries, keys_, row),
                   {results.data + (row - begin), results.stride, false});
    });
  }

  /// Coefficients with the arithmetic asked for, and for a single token with what to prefetch.
  kernels::Coefficients prepared(kernels::Coefficients coefficients, const PieceList& pieces, std::size_t row) const {
    coefficients.arithmetic = settings_.arithmetic;
    if (coefficients.rows <= settings_.shape->group()) coefficients.ahead = pieces.bytes_to_next_chunk(row);
    return coefficients;
  }

  /// A key stands at its original position and is wanted at its slot. Turning the query by the difference gives the same
  /// product, and one turn serves every row that is shifted by as much.
  void score_shifted(std::size_t begin, std::size_t end, const Queries& queries, kernels::Results results) const {
    auto turned = detail::scratch<struct TurnedPurpose>(queries.rows() * queries.dim);
    for (const Run& run : runs_) {
      if (run.end <= begin) continue;
      for (std::size_t row = 0; row < queries.rows(); ++row) {
        const std::span<float> target = turned.subspan(row * queries.dim, queries.dim);
        std::copy_n(queries.data + row * queries.dim, queries.dim, target.begin());
        const std::int32_t delta = run.shift + (queries.shifts.empty() ? 0 : queries.shifts[row / queries.group]);
        if (delta != 0) rotate(target, settings_.shape->rotary, delta);
      }
      const std::size_t stop = std::min(end, run.end);
      score_rows(begin, stop, {turned.data(), queries.rows(), queries.dim}, results);
      results.data += stop - begin;
      begin = stop;
      if (begin == end) return;
    }
  }

  void find_runs() {
    const HeadStore& head = head_;
    auto shifts = detail::scratch<struct ShiftPurpose, std::int32_t>(rows());
    std::fill(shifts.begin(), shifts.end(), std::numeric_limits<std::int32_t>::min());
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      shifts[static_cast<std::size_t>(head.keys().map()[slot])] = head.position(slot) - static_cast<std::int32_t>(slot);
    auto runs = detail::scratch<struct RunPurpose, Run>(rows());
    std::size_t count = 0;
    for (std::size_t row = 0; row < rows(); ++row) {
      const bool dead = shifts[row] == std::numeric_limits<std::int32_t>::min();
      if (count > 0 && (dead || runs[count - 1].shift == shifts[row]))
        runs[count - 1].end = row + 1;
      else
        runs[count++] = {row + 1, dead ? 0 : shifts[row]};
    }
    runs_ = runs.first(count);
  }

  void mask_unselected(std::span<const std::uint8_t> selected) {
    auto memory = detail::scratch<BiasPurpose>(round_up(rows(), TileLanes));  // where key_bias wrote
    if (bias_.empty()) std::fill(memory.begin(), memory.end(), 0.0f);
    for (std::size_t slot = 0; slot < head_.size(); ++slot)
      if (!selected[slot]) memory[static_cast<std::size_t>(head_.keys().map()[slot])] = MinusInfinity;
    bias_ = memory;
    selects_ = true;
  }

  const HeadStore& head_;
  Settings settings_;
  mutable PieceList keys_, values_;  // what they know is no part of the reader's meaning
  std::span<const float> bias_;
  std::span<const Run> runs_;
  bool selects_ = false;
};

}  // namespace kvc::attention
