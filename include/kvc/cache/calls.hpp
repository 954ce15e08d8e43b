#pragma once
#include <algorithm>
#include <cstddef>
#include <limits>
#include <new>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kvc/attention/plain_pass.hpp"
#include "kvc/cache/guarded.hpp"
#include "kvc/cache/lifecycle.hpp"
#include "kvc/cache/passes.hpp"

// What an engine calls: the members of CacheCore.
namespace kvc::inline KVC_ABI {

namespace cache {
/// Whether a call on this layer may change others: it then saves them too.
inline bool reaches_other_layers(const Inside& in, const Pass& pass) {
  if (pass.event == Event::probe) return false;
  return is_pair(in, pass.layer) || waits(in, pass.event);
}

inline void finish(Inside& in, const Finished& finished, Event event) noexcept {
  for (std::size_t layer = finished.first; layer < finished.first + finished.count; ++layer)
    finish_layer(in, layer, event);
  if (event == Event::prompt_end) release_ramp(in);
}

/// The tokens [first, first + count) of a call.
inline Tokens part_of(const Tokens& tokens, std::size_t first, std::size_t count, std::size_t kv_heads) {
  Tokens part{
      .q = tokens.q.subrows(first, count), .k = tokens.k.subrows(first, count), .v = tokens.v.subrows(first, count)};
  if (!tokens.scores.empty()) part.scores = tokens.scores.subspan(first * kv_heads, count * kv_heads);
  if (!tokens.positions.empty()) part.positions = tokens.positions.subspan(first, count);
  return part;
}

/// Runs a pass within a transaction. Read-time selectors choose for every generated token by itself; policies then act once,
/// after the last one.
inline void run_in(Inside& in, Pass pass, Transaction& transaction) {
  if (pass.event != Event::decode || !in.demands.selects || pass.count() <= 1)
    return finish(in, run_pass(in, pass, transaction), pass.event);
  const Tokens& all = *pass.tokens;
  const Rows<float> out = pass.out;
  const std::span<float> lse = pass.lse;
  for (std::size_t t = 0; t < all.k.count; ++t) {
    const Tokens one = part_of(all, t, 1, in.shape.kv_heads);
    pass.tokens = &one;
    pass.out = out.subrows(t, 1);
    if (!lse.empty()) pass.lse = lse.subspan(t * in.shape.query_heads, in.shape.query_heads);
    pass.acts_later = t + 1 < all.k.count;
    finish(in, run_pass(in, pass, transaction), pass.event);
  }
}
inline void run(Inside& in, const Pass& pass) {
  if (reaches_other_layers(in, pass)) {
    Transaction transaction(in);
    run_in(in, pass, transaction);
    transaction.commit();
  } else {
    Transaction transaction(in, pass.layer);
    run_in(in, pass, transaction);
    transaction.commit();
  }
}

/// Lets the policies act on every layer now.
inline void act_everywhere(Inside& in, const Occasion& occasion) {
  Transaction transaction(in);
  for (std::size_t head = 0; head < in.heads.size(); ++head) transaction.before_observe(head);
  if (occasion.event == Event::prompt_end)
    for (std::size_t layer = 0; layer < in.shape.layers; ++layer) open_prompt(in, layer);
  std::vector<Finished> all;
  for (std::size_t layer = 0; layer < in.shape.layers; ++layer) all.push_back(act(in, layer, occasion, transaction));
  for (const Finished& finished : all) finish(in, finished, occasion.event);
  transaction.commit();
}

/// Of the drafted tokens of a layer the first `tokens` stay: policies observe them and act.
inline Finished accept_on_layer(Inside& in, std::size_t layer, std::size_t tokens, Transaction& transaction) {
  LayerState& state = in.layers[layer];
  const std::size_t rejected = state.drafted_tokens() - tokens, first = in.first_head(layer);
  {
    const WorkspacePool::Lease workspace(*in.workspaces);
    for (std::size_t head = first; head < first + in.shape.kv_heads; ++head) {
      HeadStore& store = in.heads[head];
      transaction.before_act(head);
      if (rejected != 0) store.truncate(store.size() - rejected, rejected);
      index_head(in, head, store.size() - tokens, Event::decode, *workspace);
    }
  }
  state.seen -= rejected;
  if (rejected != 0) state.next_position = tokens == 0 ? state.drafted_from : state.drafted_positions[tokens - 1] + 1;
  if (tokens == 0) return {};
  const std::size_t dim = in.shape.query_heads * in.shape.head_dim;
  const std::span<const float> scores(state.drafted_scores);
  const Tokens observed{.q = {state.drafted.data(), tokens, dim},
                        .k = {nullptr, tokens, 0},
                        .v = {},
                        .scores = scores.first(in.demands.external_scores ? tokens * in.shape.kv_heads : 0)};
  const Pass pass{.layer = layer, .event = Event::decode, .tokens = &observed, .executor = in.executor};
  attention::attend_prompt(layer_pass(in, pass), feeds_after(in, layer, Event::decode), in.attention, in.feed_memory,
                           *in.executor, *in.workspaces);
  in.executor->parallel_for(in.shape.kv_heads, [&](std::size_t local) {
    const WorkspacePool::Lease workspace(*in.workspaces);
    observe_head(in, pass, first + local, in.heads[first + local].size() - tokens, *workspace);
  });
  return act_on_pass(in, pass, false, transaction);
}
}  // namespace cache

KVC_FORWARD CacheCore::CacheCore(const CacheShape& shape, Stages stages, const CacheOptions& options)
    : inside_(cache::guarded("CacheCore", [&] { return cache::make_inside(shape, std::move(stages), options); })) {}
KVC_FORWARD CacheCore::CacheCore(const CacheCore& other)
    : inside_(cache::guarded("fork", [&] { return cache::fork_inside(*other.inside_); })) {}
KVC_FORWARD CacheCore::CacheCore(CacheCore&&) noexcept = default;
KVC_FORWARD CacheCore& CacheCore::operator=(CacheCore&&) noexcept = default;
KVC_FORWARD CacheCore::~CacheCore() = default;

KVC_FORWARD void CacheCore::prefill(std::size_t layer, const Tokens& tokens, Rows<float> out, bool last_chunk,
                                    std::span<float> lse) {
  cache::Inside& in = *inside_;
  cache::check_tokens(in, "prefill", layer, tokens, out, true);
  cache::check_lse(in, "prefill", lse, tokens.k.count, out);
  cache::check_no_drafts(in, "prefill");
  cache::guarded("prefill", [&] {
    cache::run(in, {.layer = layer,
                    .event = last_chunk ? Event::prompt_end : Event::prompt_chunk,
                    .tokens = &tokens,
                    .out = out,
                    .lse = lse,
                    .executor = in.executor});
  });
}

KVC_FORWARD void CacheCore::decode(std::size_t layer, const Tokens& tokens, Rows<float> out, std::span<float> lse) {
  cache::Inside& in = *inside_;
  cache::check_tokens(in, "decode", layer, tokens, out, false);
  cache::check_lse(in, "decode", lse, tokens.k.count, out);
  cache::check_no_drafts(in, "decode");
  cache::guarded("decode", [&] {
    cache::run(
        in,
        {.layer = layer, .event = Event::decode, .tokens = &tokens, .out = out, .lse = lse, .executor = in.executor});
  });
}

KVC_FORWARD void CacheCore::draft(std::size_t layer, const Tokens& tokens, Rows<float> out, std::span<float> lse) {
  cache::Inside& in = *inside_;
  cache::check_tokens(in, "draft", layer, tokens, out, false);
  cache::check_lse(in, "draft", lse, tokens.k.count, out);
  cache::guarded("draft", [&] {
    cache::Transaction transaction(in, layer);
    cache::LayerState& state = in.layers[layer];
    const Position from = state.next_position;
    for (std::size_t t = 0; t < tokens.q.count; ++t)
      state.drafted.insert(state.drafted.end(), tokens.q[t].begin(), tokens.q[t].end());
    if (in.demands.external_scores)
      state.drafted_scores.insert(state.drafted_scores.end(), tokens.scores.begin(), tokens.scores.end());
    for (std::size_t t = 0; t < tokens.q.count; ++t)
      state.drafted_positions.push_back(tokens.positions.empty() ? from + static_cast<Position>(t)
                                                                 : tokens.positions[t]);
    cache::run_in(in,
                  {.layer = layer,
                   .event = Event::decode,
                   .tokens = &tokens,
                   .out = out,
                   .lse = lse,
                   .executor = in.executor,
                   .draft = true},
                  transaction);
    if (state.drafted_tokens() == tokens.q.count) state.drafted_from = from;
    transaction.commit();
  });
}

KVC_FORWARD void CacheCore::accept(std::size_t tokens) {
  cache::Inside& in = *inside_;
  for (std::size_t layer = 0; layer < in.shape.layers && tokens != 0; ++layer) {
    const std::size_t drafted = in.layers[layer].drafted_tokens(), expected = in.layers[0].drafted_tokens();
    if (drafted != expected || tokens > drafted)
      fail(ErrorCode::invalid_argument,
           {"accept: asked for ", tokens, " tokens, but layer ", layer, " has drafted ", drafted, " and layer 0 ",
            expected, ": every layer must have drafted the same; accept(0) drops what they drafted"});
  }
  cache::guarded("accept", [&] {
    cache::Transaction transaction(in);
    std::vector<cache::Finished> all;
    for (std::size_t layer = 0; layer < in.shape.layers; ++layer)
      all.push_back(cache::accept_on_layer(in, layer, tokens, transaction));
    for (const cache::Finished& finished : all) cache::finish(in, finished, Event::decode);
    for (cache::LayerState& state : in.layers) {
      std::vector<float>().swap(state.drafted);
      std::vector<float>().swap(state.drafted_scores);
      state.drafted_positions.clear();
    }
    transaction.commit();
  });
}

KVC_FORWARD void CacheCore::probe(std::size_t layer, const Tokens& tokens, Rows<float> out, Position begin,
                                  Position end) {
  cache::Inside& in = *inside_;
  cache::check_tokens(in, "probe", layer, tokens, out, true, false);
  cache::check_no_drafts(in, "probe");
  if (begin < 0 || end < begin)
    fail(ErrorCode::invalid_argument, {"probe: the positions asked about, ", begin, " to ", end, ", are no range"});
  cache::guarded("probe", [&] {
    cache::Transaction transaction(in, layer);
    const std::size_t seen = in.layers[layer].seen;
    const Position next_position = in.layers[layer].next_position;
    cache::Pass pass{.layer = layer,
                     .event = Event::probe,
                     .tokens = &tokens,
                     .out = out,
                     .probe_begin = begin,
                     .probe_end = end,
                     .executor = in.executor};
    cache::run_pass(in, pass, transaction);
    transaction.drop_appended();
    in.layers[layer].seen = seen;
    in.layers[layer].next_position = next_position;
    transaction.commit();
  });
}

KVC_FORWARD void CacheCore::attend(std::size_t layer, ConstRows queries, Rows<float> out, std::span<float> lse) const {
  const cache::Inside& in = *inside_;
  const CacheShape& shape = in.shape;
  cache::check_layer(in, layer);
  cache::check_rows({"attend", "queries"}, queries, queries.count, shape.query_heads * shape.head_dim);
  cache::check_rows({"attend", "out"}, out, queries.count, shape.query_heads * shape.values_dim());
  if (in.options.check_finite) cache::check_values({"attend", "queries"}, queries, cache::query_limit(in, layer));
  cache::check_lse(in, "attend", lse, queries.count, out);
  cache::guarded("attend", [&] {
    const WorkspacePool::Lease workspace(*in.workspaces);
    attention::attend_all(in.heads_of(layer), in.settings(layer), in.layers[layer].next_position, queries, out, lse,
                          *workspace);
  });
}

KVC_FORWARD void CacheCore::compress() {
  cache::check_no_drafts(*inside_, "compress");
  cache::guarded("compress",
                 [&] { cache::act_everywhere(*inside_, {.event = Event::prompt_end, .executor = inside_->executor}); });
}

KVC_FORWARD void CacheCore::make_room(std::size_t tokens) {
  cache::check_no_drafts(*inside_, "make_room");
  constexpr auto Most = static_cast<std::size_t>(std::numeric_limits<Position>::max());
  if (tokens > Most)
    fail(ErrorCode::invalid_argument,
         {"make_room: ", tokens, " tokens were announced, more than there are positions (", Most, ")"});
  cache::guarded("make_room", [&] {
    cache::act_everywhere(*inside_, {.event = Event::make_room, .incoming = tokens, .executor = inside_->executor});
  });
}

KVC_FORWARD void CacheCore::clear() {
  cache::guarded("clear", [&] { cache::fill_empty(*inside_); });
}

KVC_FORWARD void CacheCore::reserve(std::size_t tokens) {
  constexpr auto Most = static_cast<std::size_t>(std::numeric_limits<Position>::max());
  if (tokens > Most)
    fail(ErrorCode::invalid_argument, {"reserve: ", tokens, " tokens are more than there are positions (", Most, ")"});
  cache::guarded("reserve", [&] { cache::reserve(*inside_, tokens); });
}

KVC_FORWARD const CacheShape& CacheCore::shape() const {
  return inside_->shape;
}
KVC_FORWARD const Stages& CacheCore::stages() const {
  return inside_->stages;
}
KVC_FORWARD Stats CacheCore::stats() const {
  return cache::cache_stats(*inside_);
}
KVC_FORWARD Stats CacheCore::stats(std::size_t layer) const {
  cache::check_layer(*inside_, layer);
  return cache::layer_stats(*inside_, layer);
}
KVC_FORWARD Stats CacheCore::stats(HeadId id) const {
  return cache::head_stats(*inside_, cache::index_of(*inside_, id));
}
KVC_FORWARD std::vector<Position> CacheCore::positions(HeadId id) const {
  const HeadStore& head = inside_->heads[cache::index_of(*inside_, id)];
  std::vector<Position> positions(head.size());
  head.slots().positions().copy_to(positions);
  return positions;
}
KVC_FORWARD std::vector<Position> CacheCore::key_positions(HeadId id) const {
  std::vector<Position> rotated_for = positions(id);
  const TurnList& turns = inside_->heads[cache::index_of(*inside_, id)].slots().turns();
  for (std::size_t slot = 0; slot < rotated_for.size() && !turns.empty(); ++slot) rotated_for[slot] -= turns[slot];
  return rotated_for;
}
KVC_FORWARD void CacheCore::gather(HeadId id, Rows<float> keys, Rows<float> values) const {
  const HeadStore& head = inside_->heads[cache::index_of(*inside_, id)];
  cache::check_rows({"gather", "keys"}, keys, head.size(), inside_->shape.head_dim);
  cache::check_rows({"gather", "values"}, values, head.size(), inside_->shape.values_dim());
  gather_keys(head, inside_->shape.rotary, 0, keys);
  head.values().gather(0, values);
}
KVC_FORWARD const RowStore& CacheCore::key_rows(HeadId id) const {
  return inside_->heads[cache::index_of(*inside_, id)].keys();
}
KVC_FORWARD const RowStore& CacheCore::value_rows(HeadId id) const {
  return inside_->heads[cache::index_of(*inside_, id)].values();
}

namespace cache {
/// Number of the node with that policy type that works on a head's layer.
inline std::size_t node_of(const Inside& in, const TypeName& policy, HeadId id) {
  for (std::size_t node = 0; node < in.nodes.size(); ++node)
    if (in.nodes[node].stage->type() == policy && works_on(in, node, id.layer)) return node;
  fail(ErrorCode::unknown_name, "the policy asked for is not a stage of this cache, nor a member of one");
}
}  // namespace cache

KVC_FORWARD std::size_t CacheCore::slot_count(HeadId id) const {
  return inside_->heads[cache::index_of(*inside_, id)].size();
}
KVC_FORWARD const std::byte* CacheCore::slot_bytes(const TypeName& policy, HeadId id) const {
  return inside_->heads[cache::index_of(*inside_, id)].column(cache::node_of(*inside_, policy, id));
}
KVC_FORWARD const AnyState& CacheCore::any_state(const TypeName& policy, HeadId id) const {
  return *inside_->memory[cache::index_of(*inside_, id)].states[cache::node_of(*inside_, policy, id)];
}

}  // namespace kvc::inline KVC_ABI
