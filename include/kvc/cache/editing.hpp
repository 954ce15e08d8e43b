#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kvc/cache/acting.hpp"
#include "kvc/cache/guarded.hpp"
#include "kvc/cache/transaction.hpp"

// What an engine does to tokens that are in the cache: it forgets the last of them, or some in the middle, gives others another
// position, and asks before it does. Tokens are named by their positions, which all heads of all layers share, whatever each of
// them still holds.
namespace kvc::inline KVC_ABI {

namespace cache {

/// Slots [begin, end) of a head.
struct SlotRange {
  std::size_t begin = 0, end = 0;

  std::size_t count() const { return end - begin; }
};
/// The slots of a head whose tokens stand at positions [first, last).
inline SlotRange slots_within(const HeadStore& store, Position first, Position last) {
  const PositionList& positions = store.slots().positions();
  return {slots_before(positions, first), slots_before(positions, last)};
}

/// The position behind the last token that any layer has seen. In the middle of a step the first layers are ahead.
inline Position end_of(const Inside& in) {
  Position end = 0;
  for (const LayerState& state : in.layers) end = std::max(end, state.next_position);
  return end;
}

/// Refuses a range that is none, and edits while something waits for a decision.
inline void check_edit(const Inside& in, const char* call, Position first, Position last) {
  if (first < 0) fail(ErrorCode::invalid_argument, {call, ": position ", first, " is negative"});
  if (last < first) fail(ErrorCode::invalid_argument, {call, ": the positions ", first, " to ", last, " are no range"});
  check_no_drafts(in, call);
  for (std::size_t layer = 0; layer < in.shape.layers; ++layer)
    if (has_open_prompt(in, layer))
      fail(ErrorCode::invalid_argument,
           {call, ": a prompt is open in layer ", layer,
            ", and what policies remember of it would no longer fit its tokens; edit after its last part, or after "
            "compress(), which ends it"});
}

/// How many tokens before `from` there were. Where positions have gaps and slots were evicted nobody knows exactly; then it is
/// the fewest that every head can have had, and the same for all layers.
inline std::size_t tokens_before(const Inside& in, Position from) {
  std::size_t tokens = 0;
  for (std::size_t layer = 0; layer < in.shape.layers; ++layer) {
    const LayerState& state = in.layers[layer];
    if (from >= state.next_position) continue;
    tokens = std::max(tokens, state.seen - std::min(state.seen, static_cast<std::size_t>(state.next_position - from)));
    for (const HeadStore& store : in.heads_of(layer))
      tokens = std::max(tokens, slots_before(store.slots().positions(), from));
  }
  return tokens;
}

/// Forgets the tokens of a layer from position `from` on; `tokens` are left. Returns whether that is exact.
inline bool truncate_layer(Inside& in, std::size_t layer, Position from, std::size_t tokens, Workspace& workspace) {
  LayerState& state = in.layers[layer];
  const bool exact = from >= state.changed_at;
  const std::size_t forgotten = state.seen - std::min(state.seen, tokens);
  for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head) {
    HeadStore& store = in.heads[head];
    const std::size_t slots = slots_before(store.slots().positions(), from);
    store.truncate(slots, std::min(forgotten, store.seen() - slots));
    index_head(in, head, slots, Event::decode, workspace);
  }
  state.seen -= forgotten;
  state.next_position = from;
  state.changed_at = std::min(state.changed_at, from);
  state.merged_until = std::min(state.merged_until, from);
  return exact;
}

/// What truncate_layer() would leave.
inline Truncation truncation_of(const Inside& in, std::size_t layer, Position from) {
  const LayerState& state = in.layers[layer];
  if (from >= state.next_position || from >= state.changed_at) return Truncation::exact;
  if (!in.demands.shrinks && in.shape.window(layer) == 0) return Truncation::rounded;
  if (state.seen != static_cast<std::size_t>(state.next_position)) return Truncation::lost;  // positions have gaps
  for (const HeadStore& store : in.heads_of(layer))
    if (slots_before(store.slots().positions(), from) != static_cast<std::size_t>(from)) return Truncation::lost;
  return Truncation::rounded;
}

/// The queries that wait for something end with the tokens that are left.
inline void truncate_queries(Inside& in, LayerState& state, Position from) noexcept {
  state.window.clear();
  state.window_tokens = 0;
  const std::size_t dim = in.shape.query_heads * in.shape.head_dim;
  const auto keep_before = [from](std::vector<Position>& positions) {
    while (!positions.empty() && positions.back() >= from) positions.pop_back();
    return positions.size();
  };
  state.references.cut(keep_before(state.references.positions), dim);
  // Drafted tokens came last; those that are left still wait for accept().
  const std::size_t waiting = keep_before(state.drafted_positions);
  state.drafted.resize(waiting * dim);
  state.drafted_scores.resize(in.demands.external_scores ? waiting * in.shape.kv_heads : 0);
}

/// Forgets the tokens of all layers from position `from` on. Returns whether that is exact.
inline bool truncate(Inside& in, Position from) {
  Transaction transaction(in);
  const WorkspacePool::Lease workspace(*in.workspaces);
  const std::size_t tokens = tokens_before(in, from);
  std::vector<LayerState*> shorter;
  bool exact = true;
  for (std::size_t layer = 0; layer < in.shape.layers; ++layer) {
    if (from >= in.layers[layer].next_position) continue;
    shorter.push_back(&in.layers[layer]);
    transaction.before_act_on_layer(layer);
    exact &= truncate_layer(in, layer, from, tokens, *workspace);
  }
  for (LayerState* state : shorter) truncate_queries(in, *state, from);
  transaction.commit();
  return exact;
}

/// How many tokens there were at positions [first, last). Where nobody knows exactly it is the most that every head can have
/// lost, and the same for all layers.
inline std::size_t tokens_within(const Inside& in, Position first, Position last) {
  auto tokens = static_cast<std::size_t>(last - first);
  for (std::size_t layer = 0; layer < in.shape.layers; ++layer)
    for (const HeadStore& store : in.heads_of(layer))
      if (in.layers[layer].next_position > first)
        tokens = std::min(tokens, store.seen() - (store.size() - slots_within(store, first, last).count()));
  return tokens;
}

/// Drops slots of a head where they are, as an eviction does; the columns of the policies go with them.
inline void remove_slots(Inside& in, std::size_t head, SlotRange range, Workspace& workspace) {
  HeadStore& store = in.heads[head];
  const bool packed = store.slots().positions().packed();
  Workspace::Frame frame(workspace);
  const auto stays = frame.filled<std::uint8_t>(store.size(), 1);
  std::ranges::fill(stays.subspan(range.begin, range.count()), std::uint8_t{0});
  store.keep(stays, false, workspace, true);
  if (packed) store.pack_positions();
  index_head(in, head, range.begin, Event::decode, workspace);
}

/// Forgets the tokens at positions [first, last), behind which there are others.
inline void remove(Inside& in, Position first, Position last) {
  const auto range_of = [&](std::size_t head) { return slots_within(in.heads[head], first, last); };
  bool any = false;
  for (std::size_t head = 0; head < in.heads.size(); ++head) any |= range_of(head).count() != 0;
  if (!any) return;
  Transaction transaction(in);
  const WorkspacePool::Lease workspace(*in.workspaces);
  const std::size_t tokens = tokens_within(in, first, last);
  for (std::size_t layer = 0; layer < in.shape.layers; ++layer) {
    if (in.layers[layer].next_position <= first) continue;
    transaction.before_act_on_layer(layer);
    for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head) {
      if (const SlotRange range = range_of(head); range.count() != 0) remove_slots(in, head, range, *workspace);
      in.heads[head].forget(tokens);
    }
    in.layers[layer].seen -= tokens;
  }
  for (attention::HeadAttention& attention : in.attention) attention.window_tokens = 0;
  release_ramp(in);
  transaction.commit();
}

/// Tokens that are to stand elsewhere.
struct Shift {
  Position first = 0, last = 0;
  std::int64_t delta = 0;
  bool tail = false;  ///< whether no token stands behind them, so that the next one follows them

  /// Where a boundary goes that parts the tokens before it from those at and behind it.
  Position moved(Position boundary) const noexcept {
    if (boundary <= first)
      return static_cast<Position>(std::max<std::int64_t>(0, std::min<std::int64_t>(boundary, first + delta)));
    if (boundary <= last) return static_cast<Position>(boundary + delta);
    return static_cast<Position>(std::max<std::int64_t>(boundary, last + delta));
  }
};

/// Refuses what would bring the tokens of a head out of order, or out of the numbers that are positions.
inline void check_shift(const Inside& in, std::size_t head, const Shift& shift) {
  const PositionList& positions = in.heads[head].slots().positions();
  const SlotRange range = slots_within(in.heads[head], shift.first, shift.last);
  const HeadId id = in.id_of(head);
  if (const std::int64_t next = shift.last + shift.delta, least = range.begin == 0 ? 0 : positions[range.begin - 1] + 1;
      shift.tail && next < least)
    fail(ErrorCode::invalid_argument, {"shift: the next token would stand at position ", next, ", but in layer ",
                                       id.layer, ", head ", id.head, " ", least, " is the first that is free"});
  if (range.count() == 0) return;
  const std::int64_t begin = positions[range.begin] + shift.delta, end = positions[range.end - 1] + shift.delta;
  if (begin < 0)
    fail(ErrorCode::invalid_argument,
         {"shift: the token at position ", positions[range.begin], " would stand at position ", begin});
  const auto refuse = [&](std::int64_t from, std::int64_t to, Position other) {
    fail(ErrorCode::invalid_argument,
         {"shift: in layer ", id.layer, ", head ", id.head, " the token at position ", from, " would stand at ", to,
          ", not ", shift.delta < 0 ? "behind" : "before", " the one at ", other, "; remove() makes room"});
  };
  if (range.begin > 0 && begin <= positions[range.begin - 1])
    refuse(positions[range.begin], begin, positions[range.begin - 1]);
  if (range.end < positions.size() && end >= positions[range.end])
    refuse(positions[range.end - 1], end, positions[range.end]);
  if (const Position next = in.layers[in.layer_of(head)].next_position; !shift.tail && end >= next)
    refuse(positions[range.end - 1], end, next);
}

/// Gives the tokens of a layer other positions. Their rows stay as they are: whoever reads a key turns it, or the query.
inline void shift_layer(Inside& in, std::size_t layer, const Shift& shift) {
  for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head)
    if (const SlotRange range = slots_within(in.heads[head], shift.first, shift.last); range.count() != 0) {
      in.heads[head].shift(range.begin, range.end, static_cast<std::int32_t>(shift.delta));
      keys_changed(in, head, range.begin);
    }
  LayerState& state = in.layers[layer];
  if (shift.tail) state.next_position = shift.moved(state.next_position);
  state.changed_at = std::min(shift.moved(state.changed_at), state.next_position);
  state.merged_until = std::min(shift.moved(state.merged_until), state.next_position);
  // Where tokens stand now that policies evicted from, fewer are remembered to have been.
  const std::size_t most = static_cast<std::size_t>(state.next_position);
  if (state.seen <= most) return;
  for (HeadStore& store : in.heads_of(layer)) store.forget(state.seen - most);
  state.seen = most;
}

inline void shift(Inside& in, const Shift& shift) {
  for (std::size_t head = 0; head < in.heads.size(); ++head) check_shift(in, head, shift);
  Transaction transaction(in);
  for (std::size_t layer = 0; layer < in.shape.layers; ++layer) {
    if (in.layers[layer].next_position <= shift.first) continue;
    transaction.before_act_on_layer(layer);
    shift_layer(in, layer, shift);
  }
  for (attention::HeadAttention& attention : in.attention) attention.window_tokens = 0;
  transaction.commit();
}

}  // namespace cache

KVC_FORWARD bool CacheCore::truncate(Position from) {
  if (from < 0) fail(ErrorCode::invalid_argument, {"truncate: position ", from, " is negative"});
  return cache::guarded("truncate", [&] { return cache::truncate(*inside_, from); });
}
KVC_FORWARD Truncation CacheCore::can_truncate(Position from) const {
  if (from < 0) fail(ErrorCode::invalid_argument, {"can_truncate: position ", from, " is negative"});
  Truncation worst = Truncation::exact;
  for (std::size_t layer = 0; layer < inside_->shape.layers; ++layer)
    worst = std::max(worst, cache::truncation_of(*inside_, layer, from));
  return worst;
}
KVC_FORWARD Position CacheCore::next_position() const {
  return inside_->layers[0].next_position;
}

KVC_FORWARD void CacheCore::remove(Position first, Position last) {
  cache::Inside& in = *inside_;
  cache::check_edit(in, "remove", first, last);
  if (first == last) return;
  cache::guarded("remove", [&] {
    if (last >= cache::end_of(in))
      static_cast<void>(cache::truncate(in, first));
    else
      cache::remove(in, first, last);
  });
}

KVC_FORWARD void CacheCore::shift(Position first, Position last, std::int64_t delta) {
  cache::Inside& in = *inside_;
  cache::check_edit(in, "shift", first, last);
  if (in.shape.rotary.inv_freq.empty())
    fail(ErrorCode::missing_feed,
         "CacheShape::rotary: shift() needs the model's rotary table to turn keys, but it is empty");
  const Position end = cache::end_of(in);
  const bool tail = last >= end;
  last = std::min(last, end);
  constexpr std::int64_t Most = std::numeric_limits<Position>::max();
  if (delta < -Most || delta > Most || (tail && last + delta > Most))
    fail(ErrorCode::invalid_argument, {"shift: by ", delta, " the tokens at positions ", first, " to ", last,
                                       " would leave the numbers that there are"});
  if (first >= last || delta == 0) return;
  cache::guarded("shift", [&] { cache::shift(in, {first, last, delta, tail}); });
}

}  // namespace kvc::inline KVC_ABI
