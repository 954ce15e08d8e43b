#pragma once
#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/cache/feed.hpp"
#include "kvc/cache/inside.hpp"

// Policies look: what a stage sees of a head, its observation of a pass, and the indexes of read-time selectors.
namespace kvc::inline KVC_ABI::cache {

/// A head as one node sees it. `incoming` belongs to Event::make_room.
inline AnyHead any_head(Inside& in, std::size_t node, std::size_t head, Event event, HeadFeed& feed,
                        std::size_t incoming = 0) {
  HeadStore& store = in.heads[head];
  HeadMemory& memory = in.memory[head];
  const Stage& stage = *in.nodes[node].stage;
  const std::size_t owner = in.nodes[node].owner;
  AnyHead any;
  HeadView& view = any.view;
  view.id = in.id_of(head);
  view.event = event;
  view.acts = acts_after(stage.when(), event);
  view.seen = store.seen();
  view.incoming = incoming;
  view.shape = &in.shape;
  view.positions = feed.positions();
  view.multiplicity = feed.multiplicity();
  view.key_limit = in.layers[view.id.layer].key_limit;
  view.value_limit = in.layers[view.id.layer].value_limit;
  view.source = &feed;
  const bool own = in.stage_node[owner] == node;
  const std::size_t budget = stage.budget(view.id, view.seen, in.shape);
  view.budget = own ? memory.budgets[owner].at(budget) : budget;
  // Columns move when they grow, so where they lie is asked anew, of the node and of its members behind it.
  const std::size_t end = own && owner + 1 < in.stage_node.size() ? in.stage_node[owner + 1] : in.nodes.size();
  for (std::size_t i = node; i < end; ++i) memory.places[i] = {store.column(i), memory.states[i].get()};
  any.memory = &memory.places[node];
  return any;
}

/// Whether a node takes part in a layer: its stage does.
inline bool works_on(const Inside& in, std::size_t node, std::size_t layer) {
  return in.stages[in.nodes[node].owner]->works_on(layer);
}

/// Tells the indexes that slots from `from` on are new, changed or gone.
inline void index_head(Inside& in, std::size_t head, std::size_t from, Event event, Workspace& workspace) {
  if (!in.demands.indexes) return;
  HeadMemory& memory = in.memory[head];
  memory.index_from = from = std::min(from, memory.index_from);  // until they all have been told
  Workspace::Frame frame(workspace);
  HeadFeed feed(in, head, frame);
  feed.reuse(in.work_of(head).keys);
  for (std::size_t node = 0; node < in.nodes.size(); ++node)
    if (in.nodes[node].verbs.index && works_on(in, node, in.layer_of(head)))
      in.nodes[node].stage->index(any_head(in, node, head, event, feed), from);
  memory.index_from = Unlimited;
}

/// The keys of slots from `from` on may read otherwise: a seal rounds them. The indexes are told before they are next asked.
inline void keys_changed(Inside& in, std::size_t head, std::size_t from) noexcept {
  if (in.demands.indexes && from < in.heads[head].size())
    in.memory[head].index_from = std::min(from, in.memory[head].index_from);
}

/// The kind of attention that a node wants to be told after an event.
inline Feed feed_after(const Needs& needs, Event event) {
  switch (event) {
    case Event::prompt_chunk:
    case Event::prompt_end:
      return needs.prompt;
    case Event::decode:
      return needs.decode;
    case Event::probe:
      return needs.probe;
    case Event::make_room:
      break;
  }
  return Feed::none;
}

/// All kinds that the nodes of a layer want.
inline attention::FeedSet feeds_after(const Inside& in, std::size_t layer, Event event) {
  attention::FeedSet feeds;
  for (std::size_t node = 0; node < in.nodes.size(); ++node)
    if (works_on(in, node, layer)) {
      const Feed feed = feed_after(in.nodes[node].needs, event);
      if (feed != Feed::none) feeds.add(feed);
    }
  return feeds;
}

/// The queries of one KV head in a pass, as they came and without their rotation.
inline void gather_queries(const Inside& in, const Pass& pass, std::size_t head, std::size_t first_new,
                           Workspace::Frame& frame, Observation& seen) {
  const std::size_t local = head % in.shape.kv_heads, group = in.shape.group(), dim = in.shape.head_dim,
                    tokens = pass.tokens->q.count;
  const auto queries = frame.take(tokens * group * dim), unrotated = frame.take(tokens * group * dim);
  for (std::size_t t = 0; t < tokens; ++t)
    std::ranges::copy(pass.tokens->q[t].subspan(local * group * dim, group * dim),
                      queries.begin() + std::ptrdiff_t(t * group * dim));
  std::ranges::copy(queries, unrotated.begin());
  for (std::size_t row = 0; row < tokens * group; ++row)
    rotate(unrotated.subspan(row * dim, dim), in.shape.rotary,
           -double(in.heads[head].slots().position(first_new + row / group)));
  seen.queries = {queries.data(), tokens * group, dim};
  seen.unrotated_queries = {unrotated.data(), tokens * group, dim};
}

/// Shows every node of a head the pass whose new slots begin at `first_new`, with the attention that it asked for.
inline void observe_head(Inside& in, const Pass& pass, std::size_t head, std::size_t first_new, Workspace& workspace) {
  if (!in.demands.observes) return;
  Workspace::Frame frame(workspace);
  Observation seen;
  seen.event = pass.event;
  seen.first_new = first_new;
  seen.queries_count = pass.tokens->q.count;
  seen.probe_begin = pass.probe_begin;
  seen.probe_end = pass.probe_end;
  if (in.demands.queries) gather_queries(in, pass, head, first_new, frame, seen);
  if (in.demands.external_scores) {
    const auto scores = frame.take(seen.queries_count);
    for (std::size_t t = 0; t < scores.size(); ++t)
      scores[t] = pass.tokens->scores[t * in.shape.kv_heads + head % in.shape.kv_heads];
    seen.scores = scores;
  }
  HeadFeed feed(in, head, frame);
  for (std::size_t node = 0; node < in.nodes.size(); ++node) {
    if (!in.nodes[node].verbs.observe || !works_on(in, node, in.layer_of(head))) continue;
    Observation own = seen;
    const Needs& needs = in.nodes[node].needs;
    own.attention = in.attention_of(head).of(feed_after(needs, pass.event));
    if (!needs.queries) own.queries = own.unrotated_queries = {};
    if (!needs.external_scores) own.scores = {};
    in.nodes[node].stage->observe(any_head(in, node, head, pass.event, feed), own);
    // What a policy has nowhere to remember is nothing that a rollback could not undo.
    const bool remembers = in.nodes[node].stage->slot_bytes() != 0 || !in.memory[head].states[node]->empty();
    in.memory[head].changed = in.memory[head].changed || remembers;
  }
}

/// Opens, or drops, the memory that the nodes of a layer keep only while a prompt is open.
inline void open_prompt(Inside& in, std::size_t layer) {
  for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head)
    for (auto& state : in.memory[head].states) state->open_prompt();
}
inline void close_prompt(Inside& in, std::size_t layer) {
  for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head)
    for (auto& state : in.memory[head].states) state->close_prompt();
}

}  // namespace kvc::inline KVC_ABI::cache
