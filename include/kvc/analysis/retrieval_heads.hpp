#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "kvc/codec/make.hpp"
#include "kvc/executor.hpp"
#include "kvc/kernels/dispatch.hpp"
#include "kvc/policy/head_table.hpp"
#include "kvc/shape.hpp"
#include "kvc/storage/block.hpp"

namespace kvc::inline KVC_ABI {

/// The text on which heads show whether they retrieve: one BOS, then a block of random token ids again and again.
/// RazorAttention's authors and Huawei's tools use a block of 2500 and 4 repeats.
struct RepeatedBlock {
  std::size_t block = 2500, repeats = 4;
  std::size_t tokens() const { return 1 + block * repeats; }
};

/// How much each query head attends to what it has read before, 0 to 1: the mean over all tokens after the first block of
/// the attention paid to the same token in earlier repeats (echo), and to the tokens right after those (induction).
struct HeadScores {
  std::size_t layers = 0, query_heads = 0, kv_heads = 0;
  std::vector<float> echo, induction;  ///< [layers, query_heads]
};

/// Which shares of all KV heads are retrieval heads; the defaults are the paper's and Huawei's.
struct RetrievalShares {
  double induction = 0.14, echo = 0.01;
};

/// Computes HeadScores layer by layer, in any order, from the queries and keys of a RepeatedBlock. Follows Huawei's
/// msmodelslim (ra_rope_tools.py): the softmax includes the BOS, whose row and column are then left out.
class HeadScorer {
 public:
  /// Throws Error unless the block can repeat.
  HeadScorer(const CacheShape& shape, RepeatedBlock text) : shape_(shape), text_(text), seen_(shape.layers) {
    shape.validate();
    if (text.block == 0 || text.repeats < 2)
      fail(ErrorCode::invalid_argument,
           {"HeadScorer: a block of at least 1 token must be repeated at least 2 times, got ", text.block, " tokens ",
            text.repeats, " times"});
    scores_ = {shape.layers, shape.query_heads, shape.kv_heads, {}, {}};
    scores_.echo.resize(shape.layers * shape.query_heads);
    scores_.induction.resize(shape.layers * shape.query_heads);
  }

  /// The queries [tokens, query_heads * head_dim] and keys [tokens, kv_heads * head_dim] of one layer, rotary applied.
  /// Throws Error for another layer, shape, or a number that is not finite.
  void add(std::size_t layer, ConstRows q, ConstRows k, Executor& executor) {
    check(layer, q, k);
    const std::size_t tokens = text_.tokens(), dim = shape_.head_dim;
    std::vector<Block> keys;
    keys.reserve(shape_.kv_heads);
    for (std::size_t head = 0; head < shape_.kv_heads; ++head) {
      Block& block = keys.emplace_back(codec_, tokens, std::pmr::new_delete_resource());
      codec_->encode(k.columns(head * dim, dim), block.data(), tokens, 0);
    }
    // Tiles of query rows of one head; their sums are added in order, so every executor gives the same scores.
    const std::size_t first = 1 + text_.block, tiles = divide_up(tokens - first, TileRows);
    std::vector<Sums> sums(shape_.query_heads * tiles);
    executor.parallel_for(sums.size(), [&](std::size_t task) {
      const std::size_t head = task / tiles, begin = first + task % tiles * TileRows;
      const ConstRows rows = q.columns(head * dim, dim).subrows(begin, std::min(TileRows, tokens - begin));
      sums[task] = tile_sums(rows, begin, keys[head / shape_.group()]);
    });
    for (std::size_t head = 0; head < shape_.query_heads; ++head) {
      Sums total;
      for (std::size_t tile = 0; tile < tiles; ++tile) {
        total.echo += sums[head * tiles + tile].echo;
        total.induction += sums[head * tiles + tile].induction;
      }
      const auto rows = static_cast<double>(tokens - first);
      scores_.echo[layer * shape_.query_heads + head] = static_cast<float>(total.echo / rows);
      scores_.induction[layer * shape_.query_heads + head] = static_cast<float>(total.induction / rows);
    }
    seen_[layer] = 1;
  }
  void add(std::size_t layer, ConstRows q, ConstRows k) {
    SerialExecutor serial;
    add(layer, q, k, serial);
  }

  /// Throws Error while a layer is missing.
  const HeadScores& scores() const {
    const auto missing = std::find(seen_.begin(), seen_.end(), std::uint8_t{0});
    if (missing != seen_.end())
      fail(ErrorCode::missing_feed, {"HeadScorer: layer ", missing - seen_.begin(), " has not been added"});
    return scores_;
  }

 private:
  /// Rows of queries, and of keys, whose logits are held at a time: they stay in the nearest cache.
  static constexpr std::size_t TileRows = 64, ChunkRows = 256;

  struct Sums {
    double echo = 0, induction = 0;
  };

  void check(std::size_t layer, ConstRows q, ConstRows k) const {
    if (layer >= shape_.layers)
      fail(ErrorCode::invalid_argument, {"HeadScorer: layer ", layer, " of a model with ", shape_.layers, " layers"});
    const auto require = [&](const char* name, const ConstRows& rows, std::size_t dim) {
      if (rows.count != text_.tokens() || rows.dim != dim)
        fail(ErrorCode::shape_mismatch, {"HeadScorer: ", name, ": got [", rows.count, ", ", rows.dim, "], expected [",
                                         text_.tokens(), ", ", dim, "]"});
      for (std::size_t row = 0; row < rows.count; ++row)
        if (!kernels::active().all_within(rows[row].data(), dim, std::numeric_limits<float>::max()))
          fail(ErrorCode::non_finite, {"HeadScorer: ", name, ": row ", row, " of layer ", layer, " is not finite"});
    };
    require("q", q, shape_.query_heads * shape_.head_dim);
    require("k", k, shape_.kv_heads * shape_.head_dim);
  }

  /// What the query rows, tokens `begin` and following of one head, pay to earlier repeats. With the BOS in column 0, the
  /// token of row r came before in columns r - block, r - 2 * block, … > 0; the token after it is one column on.
  ///
  ///        BOS | block 1    | block 2    | …
  ///   r:    .    . . . e i .  . . . e i .  . . . r        e: echo, i: induction
  Sums tile_sums(ConstRows rows, std::size_t begin, const Block& keys) const {
    const std::size_t dim = shape_.head_dim, last = begin + rows.count - 1;
    std::vector<float> queries(rows.count * dim), logits(rows.count * ChunkRows);
    std::vector<float> maximum(rows.count, -std::numeric_limits<float>::infinity()), sum(rows.count),
        correction(rows.count);
    std::vector<float> echoes(rows.count * text_.repeats), inductions(rows.count * text_.repeats);
    for (std::size_t row = 0; row < rows.count; ++row)
      for (std::size_t c = 0; c < dim; ++c) queries[row * dim + c] = rows[row][c] * shape_.logit_scale();

    for (std::size_t chunk = 0; chunk <= last; chunk += ChunkRows) {
      const std::size_t count = std::min(ChunkRows, last + 1 - chunk);
      codec_->scores(keys.data(), keys.capacity(), chunk, count, {queries.data(), rows.count, dim},
                     {logits.data(), ChunkRows, false});
      for (std::size_t row = 0; row < rows.count; ++row) {
        float* line = logits.data() + row * ChunkRows;
        const std::size_t own = begin + row;
        if (own < chunk) continue;
        const std::size_t visible = std::min(count, own + 1 - chunk);
        if (shape_.softcap > 0) kernels::active().softcap(line, visible, shape_.softcap);
        for (std::size_t repeat = 1; repeat * text_.block < own; ++repeat) {
          const std::size_t same = own - repeat * text_.block;
          if (same - chunk < visible) echoes[row * text_.repeats + repeat - 1] = line[same - chunk];
          if (same + 1 - chunk < visible) inductions[row * text_.repeats + repeat - 1] = line[same + 1 - chunk];
        }
        kernels::active().softmax_update(line, ChunkRows, 1, visible, nullptr, &maximum[row], &sum[row],
                                         &correction[row]);
      }
    }
    Sums sums;
    for (std::size_t row = 0; row < rows.count; ++row)
      for (std::size_t repeat = 1; repeat * text_.block < begin + row; ++repeat) {
        const std::size_t at = row * text_.repeats + repeat - 1;
        sums.echo += std::exp(double(echoes[at]) - double(maximum[row])) / double(sum[row]);
        sums.induction += std::exp(double(inductions[at]) - double(maximum[row])) / double(sum[row]);
      }
    return sums;
  }

  CacheShape shape_;
  RepeatedBlock text_;
  std::shared_ptr<const Codec> codec_ = make_codec(Dense{Scalar::f32}, Role::key, shape_.head_dim);
  std::vector<std::uint8_t> seen_;
  HeadScores scores_;
};

/// A KV head is as good as the best of the query heads that share it: [layers, query_heads] to [layers, kv_heads].
inline std::vector<float> best_of_groups(std::span<const float> scores, std::size_t group) {
  std::vector<float> best;
  for (std::size_t first = 0; first < scores.size(); first += group)
    best.push_back(*std::max_element(scores.begin() + std::ptrdiff_t(first),
                                     scores.begin() + std::ptrdiff_t(std::min(first + group, scores.size()))));
  return best;
}

/// 1 for the round(scores * share) highest (half to even, as Python rounds) and for all that equal one of them.
inline std::vector<std::uint8_t> select_heads(std::span<const float> scores, double share) {
  if (!(share >= 0 && share <= 1))
    fail(ErrorCode::invalid_argument, {"select_heads: the share must lie in [0, 1], got ", share});
  std::vector<std::uint8_t> selected(scores.size());
  const auto count = static_cast<std::size_t>(std::nearbyint(double(scores.size()) * share));
  if (count == 0) return selected;
  std::vector<float> sorted(scores.begin(), scores.end());
  const auto lowest = sorted.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(sorted.begin(), lowest, sorted.end(), std::greater<>());
  for (std::size_t head = 0; head < scores.size(); ++head) selected[head] = scores[head] >= *lowest;
  return selected;
}

/// The best heads by induction and the best by echo, chosen over all layers together.
inline HeadTable retrieval_heads(const HeadScores& scores, const RetrievalShares& shares = {}) {
  const std::size_t group = scores.query_heads / scores.kv_heads;
  std::vector<std::uint8_t> flags = select_heads(best_of_groups(scores.induction, group), shares.induction);
  const std::vector<std::uint8_t> echoes = select_heads(best_of_groups(scores.echo, group), shares.echo);
  for (std::size_t head = 0; head < flags.size(); ++head) flags[head] |= echoes[head];
  return {scores.layers, scores.kv_heads, std::move(flags)};
}

}  // namespace kvc
