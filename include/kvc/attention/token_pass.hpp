#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvc/attention/layer_pass.hpp"

// The attention of one generated token.
namespace kvc::inline KVC_ABI::attention {

/// Rows of a head that one task attends to; longer heads are split into parts, whose results are merged in order, so that
/// they are the same whoever shares the work.
inline constexpr std::size_t PartRows = 16 * ChunkRows;

/// Parts that the rows of a head fall into, once `coming` more have come. A head out of step is one part.
inline std::size_t parts_of(const HeadStore& head, std::size_t coming) {
  return head.in_step() ? divide_up(head.keys().rows() + coming, PartRows) : 1;
}

/// Adds all rows of a head, part by part.
inline void attend_token(const HeadReader& reader, PreparedQueries& queries, Partial& state) {
  const std::size_t rows = reader.rows();
  if (rows <= PartRows || !reader.head().in_step()) return attend(reader, 0, rows, queries, rows, state);
  attend(reader, 0, PartRows, queries, rows, state);
  Workspace::Frame frame(reader.workspace());
  const auto memory = frame.take(Partial::floats(queries.rows(), state.stride));
  for (std::size_t begin = PartRows; begin < rows; begin += PartRows) {
    auto part = Partial::empty_in(memory, queries.rows(), state.stride);
    attend(reader, begin, std::min(begin + PartRows, rows), queries, rows, part);
    state.merge(part);
  }
}

/// One head's attention for the pass's only token, over the `selected` slots (none given: all of them). The feeds wanted lie in
/// `frame` and are shown until it ends.
inline void attend_head(const LayerPass& pass, std::size_t head, std::span<const std::uint8_t> selected,
                        const FeedSet& feeds, HeadAttention& attention, Workspace::Frame& frame) {
  const HeadStore& store = pass.heads[head];
  const std::size_t group = pass.group();
  const HeadReader reader(store, pass.settings, frame, selected, pass.after(head));
  PreparedQueries queries = reader.prepare(queries_of(pass, head, 0, 1, frame), frame);
  const std::size_t rows = reader.rows();
  Partial state = start_state(store, queries.queries(), frame);
  if (!feeds.any() && selected.empty()) {
    attend_token(reader, queries, state);
  } else {
    KeptScores kept;
    if (feeds.any()) kept = room_for_scores(group, rows, frame);
    attend(reader, 0, rows, queries, rows, state, kept);
    // The sums of the group first: the other kinds scale what was kept in its place, and for one token they are the same.
    if (feeds.has(Feed::group_sums)) {
      const auto sums = frame.take(store.size());
      kept_probabilities(store, kept, state, true, sums, frame.workspace());
      attention.show(Feed::group_sums, {sums.data(), 1, store.size()});
    }
    if (feeds.has(Feed::sums) || feeds.has(Feed::maxima) || feeds.has(Feed::rows)) {
      const auto probabilities = frame.take(group * store.size());
      kept_probabilities(store, kept, state, false, probabilities, frame.workspace());
      for (const Feed feed : {Feed::sums, Feed::maxima, Feed::rows})
        if (feeds.has(feed)) attention.show(feed, {probabilities.data(), group, store.size()});
    }
  }
  write_out(pass, head, 0, state);
}

/// The same for heads so long that several threads share one; no feeds, no selection. `memory` is grown to what the parts need.
inline void attend_parts(const LayerPass& pass, std::size_t parts, std::vector<float>& memory, Executor& executor,
                         WorkspacePool& workspaces) {
  const std::size_t group = pass.group();
  std::size_t width = 0;
  for (const HeadStore& store : pass.heads) width = std::max(width, SumLayout::width(store.values()));
  const std::size_t floats = Partial::floats(group, width);
  memory.resize(pass.heads.size() * parts * floats);
  const auto part_of = [&](std::size_t task) { return std::span<float>(memory).subspan(task * floats, floats); };
  executor.parallel_for(pass.heads.size() * parts, [&](std::size_t task) {
    const WorkspacePool::Lease workspace(workspaces);
    Workspace::Frame frame(*workspace);
    const std::size_t head = task / parts, part = task % parts;
    const HeadStore& store = pass.heads[head];
    const HeadReader reader(store, pass.settings, frame, {}, pass.after(head));
    PreparedQueries queries = reader.prepare(queries_of(pass, head, 0, 1, frame), frame);
    Partial state = Partial::empty_in(part_of(task), group, width);
    if (part == 0) state.add_sinks(queries.queries());
    const std::size_t begin = part * PartRows, rows = reader.rows();
    if (!store.in_step()) {
      if (part == 0) attend(reader, 0, rows, queries, rows, state);
    } else if (begin < rows) {
      attend(reader, begin, std::min(begin + PartRows, rows), queries, rows, state);
    }
  });
  executor.parallel_for(pass.heads.size(), [&](std::size_t head) {
    Partial whole = Partial::over(part_of(head * parts), group, width);
    for (std::size_t part = 1; part < parts; ++part)
      whole.merge(Partial::over(part_of(head * parts + part), group, width));
    write_out(pass, head, 0, whole);
  });
}

}  // namespace kvc::inline KVC_ABI::attention
