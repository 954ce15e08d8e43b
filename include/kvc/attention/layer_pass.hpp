#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvc/attention/observe.hpp"
#include "kvc/executor.hpp"
#include "kvc/policy/event.hpp"
#include "kvc/workspace.hpp"

namespace kvc::inline KVC_ABI::attention {

/// What policies are shown of one head's attention in one pass, a matrix for each kind of feed, and what the head remembers
/// for HeadView::window_sums.
class HeadAttention {
 public:
  /// No rows of the kinds that nobody asked for.
  ConstRows of(Feed feed) const { return shown_[static_cast<std::size_t>(feed)]; }
  void show(Feed feed, ConstRows rows) { shown_[static_cast<std::size_t>(feed)] = rows; }
  /// Memory of the head's own for rows of that kind, which are shown from now on.
  Rows<float> make(Feed feed, std::size_t count, std::size_t slots) {
    std::vector<float>& memory = memory_[static_cast<std::size_t>(feed)];
    memory.assign(count * slots, 0.0f);
    show(feed, {memory.data(), count, slots});
    return {memory.data(), count, slots};
  }
  void forget() {
    for (ConstRows& rows : shown_) rows = {};
  }

  /// The sums of the last queries of a prompt: of which head, of so many tokens (0 if they are not known); [group, slots].
  const HeadStore* window_head = nullptr;
  std::size_t window_tokens = 0;
  std::vector<float> window_sums;
  bool knows_window(const HeadStore& head, std::size_t tokens) const {
    return tokens != 0 && window_head == &head && window_tokens == tokens;
  }

 private:
  static constexpr std::size_t Kinds = static_cast<std::size_t>(Feed::rows) + 1;
  ConstRows shown_[Kinds];
  std::vector<float> memory_[Kinds];
};

/// Which kinds of feed a pass has to make.
struct FeedSet {
  bool wanted[static_cast<std::size_t>(Feed::rows) + 1] = {};

  void add(Feed feed) { wanted[static_cast<std::size_t>(feed)] = feed != Feed::none; }
  bool has(Feed feed) const { return wanted[static_cast<std::size_t>(feed)]; }
  bool any() const {
    return std::any_of(std::begin(wanted), std::end(wanted), [](bool one) { return one; });
  }
};

/// Rows of a feed that has a row per query head of the group, or one for all of them.
inline std::size_t feed_rows(Feed feed, std::size_t group) {
  return feed == Feed::group_sums ? 1 : group;
}

/// One layer's attention in one call: the heads, whose newest slots are the call's tokens, and their queries.
struct LayerPass {
  std::span<const HeadStore> heads;
  Settings settings;
  ConstRows queries;     ///< [tokens, query_heads * head_dim] of the layer
  Rows<float> out = {};  ///< [tokens, query_heads * value_dim]; no data: nobody wants it
  std::span<float> lse =
      {};                  ///< [tokens, query_heads]: log-sum-exp of what `out` was divided by; empty: nobody wants it
  bool in_turn = false;    ///< one thread takes one head after the other, so the next head may be prefetched
  std::size_t window = 0;  ///< queries at the pass's end whose column sums are kept for HeadView::window_sums; 0: none

  std::size_t tokens() const { return queries.count; }
  std::size_t group() const { return settings.shape->group(); }
  /// The head that will be read after this one; null if other threads may be writing to it, or take it.
  const HeadStore* after(std::size_t head) const {
    return in_turn && head + 1 < heads.size() ? &heads[head + 1] : nullptr;
  }
  /// Which of the pass's queries [tokens, query_heads] query head g of a KV head is, for one token.
  std::size_t query_number(std::size_t token, std::size_t head, std::size_t g) const {
    return token * settings.shape->query_heads + head * group() + g;
  }
  /// The attention of query head g of a KV head, for one token.
  std::span<float> out_of(std::size_t token, std::size_t head, std::size_t g) const {
    const std::size_t dim = settings.shape->values_dim();
    return out[token].subspan((head * group() + g) * dim, dim);
  }
};

/// Where the newest `tokens` tokens stand in the cache, minus their positions in the text.
inline std::span<const std::int32_t> newest_shifts(const HeadStore& head, std::size_t tokens, Workspace::Frame& frame) {
  const std::span<std::int32_t> shifts = frame.take<std::int32_t>(tokens);
  const std::size_t first = head.size() - tokens;
  for (std::size_t t = 0; t < tokens; ++t)
    shifts[t] = static_cast<std::int32_t>(first + t) - head.slots().position(first + t);
  return shifts;
}

/// The positions of the newest tokens from number `first` of `tokens` on.
inline std::span<const Position> newest_positions(const HeadStore& head, std::size_t tokens, std::size_t first,
                                                  std::size_t count, Workspace::Frame& frame) {
  const std::span<Position> positions = frame.take<Position>(count);
  for (std::size_t t = 0; t < count; ++t) positions[t] = head.slots().position(head.size() - tokens + first + t);
  return positions;
}

/// The queries of a KV head for the pass's tokens [first, first + count), ready for a HeadReader.
inline Queries queries_of(const LayerPass& pass, std::size_t head, std::size_t first, std::size_t count,
                          Workspace::Frame& frame) {
  const CacheShape& shape = *pass.settings.shape;
  Queries queries = load_queries(pass.settings, pass.queries.subrows(first, count), head,
                                 frame.take(count * shape.group() * shape.head_dim));
  if (pass.settings.in_cache)
    queries.shifts = newest_shifts(pass.heads[head], pass.tokens(), frame).subspan(first, count);
  if (pass.settings.window != 0)
    queries.positions = newest_positions(pass.heads[head], pass.tokens(), first, count, frame);
  return queries;
}

/// The state of queries of a KV head that have seen no row yet.
inline Partial start_state(const HeadStore& head, const Queries& queries, Workspace::Frame& frame) {
  const std::size_t width = SumLayout::width(head.values()), rows = queries.rows();
  const Partial state = Partial::empty_in(frame.take(Partial::floats(rows, width)), rows, width);
  state.add_sinks(queries);
  return state;
}

/// The attention of query row t * group + g of a KV head goes to token `first` + t.
inline void write_out(const LayerPass& pass, std::size_t head, std::size_t first, const Partial& state) {
  state.finish_sums(pass.heads[head].values());
  for (std::size_t row = 0; row < state.rows; ++row)
    state.finish(row, pass.out_of(first + row / pass.group(), head, row % pass.group()));
  for (std::size_t row = 0; row < state.rows && !pass.lse.empty(); ++row)
    pass.lse[pass.query_number(first + row / pass.group(), head, row % pass.group())] = state.log_sum_exp(row);
}

}  // namespace kvc::inline KVC_ABI::attention
