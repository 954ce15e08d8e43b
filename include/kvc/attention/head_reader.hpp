#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>

#include "kvc/attention/piece_list.hpp"
#include "kvc/attention/queries.hpp"
#include "kvc/attention/window_mask.hpp"
#include "kvc/kernels/dispatch.hpp"
#include "kvc/storage/head_store.hpp"

namespace kvc::inline KVC_ABI::attention {

static_assert(RowStore::PromptRows == ChunkRows, "blocks of prompts are chunks, which are read and prefetched whole");

/// Multiplies column i of `rows` rows by norms[i].
inline void apply_norms(const float* norms, std::size_t count, float* x, std::size_t rows, std::size_t stride) {
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t i = 0; i < count; ++i) x[row * stride + i] *= norms[i];
}

/// Where the sums of codecs that do not add up rows themselves lie: behind a query row's sum of rows, one after the other.
struct SumLayout {
  /// Floats of all sums of one query row.
  static std::size_t width(const RowStore& values) {
    std::size_t floats = round_up(values.dim(), TileLanes);
    for (const auto& codec : values.transforming()) floats += round_up(codec->sum_dim(), TileLanes);
    return floats;
  }
  static std::size_t begin_of(const Codec& codec, const RowStore& values) {
    if (values.transforming().empty()) return 0;
    std::size_t floats = round_up(values.dim(), TileLanes);
    for (const auto& each : values.transforming()) {
      if (each.get() == &codec) return codec.sum_dim() == 0 ? 0 : floats;
      floats += round_up(each->sum_dim(), TileLanes);
    }
    return 0;
  }
};

/// Scores of `count` rows of a block from `begin` on, whatever multiple its codec wants ranges to begin on.
inline void piece_scores(const Piece& piece, std::size_t begin, std::size_t count, const kernels::Coefficients& queries,
                         const kernels::Results& results, Workspace& workspace) {
  const std::size_t outside = begin % piece.codec->range_granule();
  if (outside == 0) {
    piece.codec->scores(piece.data, piece.capacity, begin, count, queries, results);
  } else {
    const std::size_t wide = outside + count;
    Workspace::Frame frame(workspace);
    const auto memory = frame.take(queries.rows * wide);
    piece.codec->scores(piece.data, piece.capacity, begin - outside, wide, queries, {memory.data(), wide, false});
    for (std::size_t row = 0; row < queries.rows; ++row)
      std::copy_n(memory.data() + row * wide + outside, count, results.data + row * results.stride);
  }
  if (piece.norms) apply_norms(piece.norms + begin, count, results.data, queries.rows, results.stride);
}

/// results += weights · `count` rows of a block from `begin` on.
inline void piece_accumulate(const Piece& piece, std::size_t begin, std::size_t count,
                             const kernels::Coefficients& weights, const kernels::Results& results,
                             Workspace& workspace) {
  const std::size_t outside = begin % piece.codec->range_granule();
  if (outside == 0 && !piece.norms)
    return piece.codec->accumulate(piece.data, piece.capacity, begin, count, weights, results);
  const std::size_t wide = outside + count;
  Workspace::Frame frame(workspace);
  const auto memory = frame.take(weights.rows * wide);
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

/// How one head is read in one pass by one task: its bias, its stretches of equally shifted rows, and the arithmetic on row
/// ranges. It lives as long as `frame`, whose memory it works in.
class HeadReader {
 public:
  /// `next`: the head that will be read after this one, or null; nobody may be writing to it.
  HeadReader(const HeadStore& head, const Settings& settings, Workspace::Frame& frame,
             std::span<const std::uint8_t> selected = {}, const HeadStore* next = nullptr)
      : head_(head),
        workspace_(frame.workspace()),
        settings_(settings),
        keys_(head.keys().segments(), next ? next->keys().segments() : std::span<const Segment>()),
        values_(head.values().segments(), next ? next->values().segments() : std::span<const Segment>()) {
    bias_ = head.key_bias(round_up(rows(), TileLanes), frame);
    if (!selected.empty()) mask_unselected(selected, frame);
    turns_ = settings.in_cache || !head.slots().turns().empty();
    if (turns_) find_stretches(frame);
  }

  const HeadStore& head() const { return head_; }
  /// What the layer's window hides from queries. It lives as long as `frame`.
  WindowMask window_of(const Queries& queries, Workspace::Frame& frame) const {
    return {head_, settings_.window, queries, frame};
  }
  Workspace& workspace() const { return workspace_; }
  /// Queries of this head, ready to be read with. They live as long as `frame`.
  PreparedQueries prepare(const Queries& queries, Workspace::Frame& frame) const {
    return {queries, head_.keys(), settings_, turns_, frame};
  }
  std::size_t rows() const { return head_.keys().rows(); }
  Position window() const { return settings_.window; }
  const float* bias(std::size_t row) const { return bias_.empty() ? nullptr : bias_.data() + row; }
  bool skips(std::size_t begin, std::size_t end) const {
    return selects_ && std::all_of(bias_.begin() + std::ptrdiff_t(begin), bias_.begin() + std::ptrdiff_t(end),
                                   [](float b) { return b == MinusInfinity; });
  }

  /// Products of the queries with key rows [begin, end): results[row][0 … end - begin).
  void products(std::size_t begin, std::size_t end, PreparedQueries& queries, const kernels::Results& results) const {
    if (!turns_)
      score_rows(begin, end, queries, results);
    else
      score_shifted(begin, end, queries, results);
  }

  /// Scores of key rows [begin, end): their products, soft-capped, without bias.
  void scores(std::size_t begin, std::size_t end, PreparedQueries& queries, const kernels::Results& results) const {
    products(begin, end, queries, results);
    if (const float cap = settings_.shape->softcap; cap > 0)
      for (std::size_t row = 0; row < queries.rows(); ++row)
        kernels::active().softcap(results.data + row * results.stride, end - begin, cap);
  }

  /// results += weights · value rows [begin, end); the sums of codecs with sums of their own lie behind (see SumLayout).
  void accumulate(std::size_t begin, std::size_t end, const kernels::Coefficients& weights,
                  const kernels::Results& results) const {
    for_each_piece(values_, begin, end, [&](const Piece& piece, std::size_t row, std::size_t count) {
      kernels::Coefficients part = prepared(weights, values_, row);
      part.data += row - begin;
      part.weights = true;
      kernels::Results sums = results;
      sums.data += SumLayout::begin_of(*piece.codec, head_.values());
      piece_accumulate(piece, piece.begin + (row - piece.first), count, part, sums, workspace_);
    });
  }

 private:
  /// Rows up to `end` whose keys stand equally far from their places.
  struct Stretch {
    std::size_t end;
    std::int32_t shift;  ///< the position that they were rotated for minus the one where they are wanted
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

  void score_rows(std::size_t begin, std::size_t end, const PreparedQueries& queries,
                  const kernels::Results& results) const {
    for_each_piece(keys_, begin, end, [&](const Piece& piece, std::size_t row, std::size_t count) {
      piece_scores(piece, piece.begin + (row - piece.first), count, prepared(queries.of(*piece.codec), keys_, row),
                   {results.data + (row - begin), results.stride, false}, workspace_);
    });
  }

  /// Coefficients with the arithmetic asked for, and for a single token with what to prefetch.
  kernels::Coefficients prepared(kernels::Coefficients coefficients, const PieceList& pieces, std::size_t row) const {
    coefficients.arithmetic = settings_.arithmetic;
    if (coefficients.rows <= settings_.shape->group()) coefficients.ahead = pieces.bytes_to_next_chunk(row);
    return coefficients;
  }

  void score_shifted(std::size_t begin, std::size_t end, PreparedQueries& queries, kernels::Results results) const {
    const auto first = std::ranges::upper_bound(stretches_, begin, std::less<>(), &Stretch::end);
    for (auto stretch = first; begin < end && stretch != stretches_.end(); ++stretch) {
      queries.turn(stretch->shift);
      const std::size_t stop = std::min(end, stretch->end);
      score_rows(begin, stop, queries, results);
      results.data += stop - begin;
      begin = stop;
    }
  }

  void find_stretches(Workspace::Frame& frame) {
    const std::span<const TurnList::Run> runs = head_.slots().turns().runs();
    const bool by_runs = !settings_.in_cache && head_.keys().map().identity();
    const auto found = frame.take<Stretch>(by_runs ? runs.size() : rows());
    std::size_t count = 0;
    if (by_runs)
      for (const TurnList::Run& run : runs) found[count++] = {run.end, -run.turn};
    else
      count = collect_stretches(found);
    stretches_ = found.first(count);
    // Dead rows behind the last slot, if there are any, read as its neighbours.
    if (count != 0) stretches_.back().end = std::max(stretches_.back().end, rows());
  }
  std::size_t collect_stretches(std::span<Stretch> found) const {
    constexpr std::int32_t Dead = std::numeric_limits<std::int32_t>::min();
    Workspace::Frame inner(workspace_);
    const auto shifts = inner.filled(rows(), Dead);
    const SlotTable& slots = head_.slots();
    std::size_t slot = 0;
    const auto note = [&](std::size_t end, std::int32_t turn) {
      for (; slot < end; ++slot)
        shifts[static_cast<std::size_t>(head_.keys().map()[slot])] =
            settings_.in_cache ? slots.position(slot) - turn - static_cast<std::int32_t>(slot) : -turn;
    };
    for (const TurnList::Run& run : slots.turns().runs()) note(run.end, run.turn);
    note(slots.size(), 0);  // nothing, unless there are no runs
    std::size_t count = 0;
    for (std::size_t row = 0; row < rows(); ++row) {
      const bool dead = shifts[row] == Dead;
      if (count > 0 && (dead || found[count - 1].shift == shifts[row]))
        found[count - 1].end = row + 1;
      else
        found[count++] = {row + 1, dead ? 0 : shifts[row]};
    }
    return count;
  }

  void mask_unselected(std::span<const std::uint8_t> selected, Workspace::Frame& frame) {
    if (bias_.empty()) bias_ = frame.filled(round_up(rows(), TileLanes), 0.0f);
    for (std::size_t slot = 0; slot < head_.size(); ++slot)
      if (!selected[slot]) bias_[static_cast<std::size_t>(head_.keys().map()[slot])] = MinusInfinity;
    selects_ = true;
  }

  const HeadStore& head_;
  Workspace& workspace_;
  Settings settings_;
  mutable PieceList keys_, values_;  // what they know is no part of the reader's meaning
  std::span<float> bias_;
  std::span<Stretch> stretches_;
  bool selects_ = false, turns_ = false;
};

}  // namespace kvc::inline KVC_ABI::attention
