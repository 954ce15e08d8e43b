#pragma once
#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/attention/layer_pass.hpp"

// Causal attention of several tokens at once, tile by tile of queries, and what policies are shown of it.
namespace kvc::inline KVC_ABI::attention {

/// Column sums, or maxima, of a prompt are taken in this many shares, which different threads can take. A share is every
/// sixteenth query tile, so what is added up in which order does not depend on the threads.
inline constexpr std::size_t Shares = 16;

/// Where a tile leaves what its queries gave to every key row: rows of `stride` floats, one per query head or one for all.
struct TileColumns {
  float* data = nullptr;  ///< null: nobody wants it
  std::size_t stride = 0;
  Feed feed = Feed::sums;
};

/// The pass's tokens [first, first + most), as many as there are, of one head.
inline void attend_tile(const LayerPass& pass, std::size_t head, std::size_t first, std::size_t most,
                        const TileColumns& columns, Workspace& workspace) {
  Workspace::Frame frame(workspace);
  const std::size_t group = pass.group(), count = std::min(most, pass.tokens() - first);
  const HeadStore& store = pass.heads[head];
  const HeadReader reader(store, pass.settings, frame);
  PreparedQueries queries = reader.prepare(queries_of(pass, head, first, count, frame), frame);
  const std::size_t rows = queries.rows(), limit_first = reader.rows() - pass.tokens() + 1 + first;
  const std::size_t end = store.in_step() ? limit_first + count - 1 : reader.rows();
  KeptScores kept;
  if (columns.data) kept = room_for_scores(rows, end, frame);
  Partial state = start_state(store, queries.queries(), frame);
  float* values = state.values;
  if (pass.out.data == nullptr) state.values = nullptr;
  attend(reader, 0, end, queries, limit_first, state, kept);
  state.values = values;
  if (pass.out.data != nullptr) write_out(pass, head, first, state);
  if (!columns.data) return;
  if (columns.feed == Feed::maxima)
    raise_kept_maxima(kept, state, end, group, columns.data, columns.stride, workspace);
  else
    add_kept_sums(kept, state, end, feed_rows(columns.feed, group), columns.data, columns.stride, workspace);
}

/// The last tokens of the pass; their column sums are kept for HeadView::window_sums, which adds them up in the same order if
/// it has to compute them.
inline void attend_window(const LayerPass& pass, std::size_t head, HeadAttention& attention, Workspace& workspace) {
  const HeadStore& store = pass.heads[head];
  const std::size_t tokens = pass.tokens(), slots = store.size();
  const bool keeps = rows_are_slots(store);
  attention.window_sums.assign(keeps ? pass.group() * slots : 0, 0.0f);
  const TileColumns columns{keeps ? attention.window_sums.data() : nullptr, slots, Feed::sums};
  const std::size_t step = tile_tokens(pass.window, pass.group(), slots);
  for (std::size_t first = tokens - pass.window; first < tokens; first += step)
    attend_tile(pass, head, first, step, columns, workspace);
  attention.window_head = &store;
  attention.window_tokens = keeps ? pass.window : 0;
}

/// Attention without feeds.
inline void attend_tiles(const LayerPass& pass, std::span<HeadAttention> attention, Executor& executor,
                         WorkspacePool& workspaces) {
  const std::size_t tokens = pass.tokens(), heads = pass.heads.size();
  const bool asks = pass.window != 0 && pass.window <= tokens;
  const std::size_t tiled = asks ? tokens - pass.window : tokens, windows = asks ? heads : 0;
  std::size_t at_once = ChunkRows;  // key rows; a head out of step scores all of them
  for (const HeadStore& store : pass.heads)
    if (!store.in_step()) at_once = std::max(at_once, store.keys().rows());
  const std::size_t step = tile_tokens(tiled, pass.group(), at_once), tiles = divide_up(tiled, step);
  executor.parallel_for(windows + heads * tiles, [&](std::size_t task) {
    const WorkspacePool::Lease workspace(workspaces);
    if (task < windows) return attend_window(pass, task, attention[task], *workspace);
    // The longest tiles first: they decide when the last thread is done.
    const std::size_t tile = tiles - 1 - (task - windows) / heads, first = tile * step;
    attend_tile(pass, (task - windows) % heads, first, std::min(step, tiled - first), {}, *workspace);
  });
}

/// Attention with the column sums, or maxima, that policies want. `memory` is grown to what the shares need.
inline void attend_shares(const LayerPass& pass, Feed feed, std::span<HeadAttention> attention,
                          std::vector<float>& memory, Executor& executor, WorkspacePool& workspaces) {
  const std::size_t tokens = pass.tokens(), heads = pass.heads.size(), kept_rows = feed_rows(feed, pass.group());
  std::size_t most = 1;
  for (const HeadStore& store : pass.heads) most = std::max(most, store.keys().rows());
  const std::size_t step = tile_tokens(tokens, pass.group(), most);
  const std::size_t tiles = divide_up(tokens, step), shares = std::min(Shares, tiles);
  const std::size_t share_floats = kept_rows * most;
  memory.resize(heads * shares * share_floats);
  executor.parallel_for(heads * shares, [&](std::size_t task) {
    const WorkspacePool::Lease workspace(workspaces);
    const std::size_t share = task / heads, head = task % heads;
    float* columns = memory.data() + (head * shares + share) * share_floats;
    std::fill_n(columns, share_floats, 0.0f);
    for (std::size_t tile = share; tile < tiles; tile += shares)
      attend_tile(pass, head, (tiles - 1 - tile) * step, step, {columns, most, feed}, *workspace);
  });
  executor.parallel_for(heads, [&](std::size_t head) {
    const HeadStore& store = pass.heads[head];
    const Rows<float> shown = attention[head].make(feed, kept_rows, store.size());
    if (shares == 0) return;
    float* columns = memory.data() + head * shares * share_floats;
    for (std::size_t share = 1; share < shares; ++share) {
      const float* other = columns + share * share_floats;
      if (feed == Feed::maxima)
        for (std::size_t i = 0; i < share_floats; ++i) columns[i] = std::max(columns[i], other[i]);
      else
        for (std::size_t i = 0; i < share_floats; ++i) columns[i] += other[i];
    }
    for (std::size_t row = 0; row < kept_rows; ++row) to_slots(store, columns + row * most, shown[row].data());
  });
}

/// Every query's row of probabilities: a second look at the scores.
inline void show_rows(const LayerPass& pass, std::span<HeadAttention> attention, Executor& executor,
                      WorkspacePool& workspaces) {
  const std::size_t tokens = pass.tokens();
  executor.parallel_for(pass.heads.size(), [&](std::size_t head) {
    const WorkspacePool::Lease workspace(workspaces);
    Workspace::Frame frame(*workspace);
    const HeadStore& store = pass.heads[head];
    const Queries queries = queries_of(pass, head, 0, tokens, frame);
    const Rows<float> rows = attention[head].make(Feed::rows, tokens * pass.group(), store.size());
    const HeadReader reader(store, pass.settings, frame);
    const std::span<float> target(rows.data, rows.count * rows.dim);
    slot_logits(reader, queries, store.size() - tokens + 1, target);
    softmax_rows(target, rows.count, rows.dim, queries.sink_logits);
  });
}

/// Attention of all tokens of the pass with every feed wanted. The first feed that needs the scores of all rows is taken out of
/// the attention itself; each further one looks a second time, so that no feed depends on which others are wanted.
inline void attend_prompt(const LayerPass& pass, const FeedSet& feeds, std::span<HeadAttention> attention,
                          std::vector<float>& memory, Executor& executor, WorkspacePool& workspaces) {
  for (HeadAttention& head : attention) {
    head.forget();
    head.window_tokens = 0;
  }
  LayerPass rest = pass;
  for (const Feed feed : {Feed::group_sums, Feed::sums, Feed::maxima}) {
    if (!feeds.has(feed)) continue;
    attend_shares(rest, feed, attention, memory, executor, workspaces);
    rest.out = {};
  }
  if (rest.out.data != nullptr) attend_tiles(pass, attention, executor, workspaces);
  if (feeds.has(Feed::rows)) show_rows(pass, attention, executor, workspaces);
}

}  // namespace kvc::inline KVC_ABI::attention
