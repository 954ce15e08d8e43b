#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "kvc/cache/inside.hpp"

// A cache is made, copied, emptied, enlarged and counted.
namespace kvc::inline KVC_ABI::cache {

/// Notes every stage and, behind it, its members.
[[gnu::cold]] inline void add_nodes(std::vector<Node>& nodes, const Stage& stage, std::size_t owner) {
  nodes.push_back({.stage = &stage,
                   .owner = owner,
                   .verbs = stage.verbs(),
                   .needs = stage.needs(),
                   .slot_bytes = stage.slot_bytes()});
  for (const Member& member : stage.members())
    if (member) add_nodes(nodes, member.stage(), owner);
}

[[gnu::cold]] inline Demands demands_of(const std::vector<Node>& nodes) {
  Demands all;
  for (const Node& node : nodes) {
    const Needs& needs = node.needs;
    all.query_window = std::max(all.query_window, needs.query_window);
    if (needs.query_stride != 0) {
      const bool first = all.query_stride == 0, endless = needs.query_most == 0 || (!first && all.query_most == 0);
      all.query_most = endless ? 0 : std::max(all.query_most, needs.query_most);
      all.query_stride = first ? needs.query_stride : std::min(all.query_stride, needs.query_stride);
    }
    all.queries |= needs.queries;
    all.external_scores |= needs.external_scores;
    all.observes |= node.verbs.observe;
    all.selects |= node.verbs.select;
    all.indexes |= node.verbs.index;
    all.shrinks |= node.verbs.evict;
    const When when = node.stage->when();
    all.rests &= node.stage->positions() == Positions::original &&
                 !(node.verbs.evict && (acts_after(when, Event::decode) || acts_after(when, Event::make_room)));
    all.merges |= node.verbs.merge;
    const std::unique_ptr<AnyState> state = node.stage->new_state();
    state->open_prompt();  // what it keeps while a prompt is open counts too
    all.remembers |= node.slot_bytes != 0 || !state->empty();
  }
  return all;
}

/// Refuses what the stages ask for together and cannot have.
[[gnu::cold]] inline void check_demands(const Inside& in) {
  bool waits = false, in_cache = false;
  for (const auto& stage : in.stages) {
    waits |= stage->verbs().waits();
    in_cache |= stage->positions() == Positions::in_cache;
  }
  if (in.demands.merges && waits)
    fail(ErrorCode::incompatible, "cross-layer merging and decisions over all layers cannot be combined");
  if (in_cache && in.shape.rotary.inv_freq.empty())
    fail(ErrorCode::missing_feed,
         "CacheShape::rotary: in-cache positions need the model's rotary table, but it is empty");
}

/// An empty head, as the stages want it.
[[gnu::cold]] inline HeadStore empty_head(const Inside& in, HeadId id) {
  Streams streams;
  for (const auto& stage : in.stages)
    if (stage->verbs().quantize && stage->works_on(id.layer)) streams = stage->quantize(id, in.shape);
  std::vector<std::vector<std::byte>> defaults;
  for (const Node& node : in.nodes) {
    defaults.emplace_back(node.slot_bytes);
    node.stage->default_slot(defaults.back().data());
  }
  return HeadStore(in.shape, streams, in.options.dense, std::move(defaults), in.block_memory);
}
inline HeadMemory empty_memory(const Inside& in) {
  HeadMemory memory;
  for (const Node& node : in.nodes) memory.states.push_back(node.stage->new_state());
  memory.budgets.assign(in.stages.size(), {});
  memory.places.resize(in.nodes.size());
  return memory;
}

/// The heads of an empty cache.
[[gnu::cold]] inline void fill_empty(Inside& in) {
  std::vector<HeadStore> heads;
  std::vector<HeadMemory> memory;
  heads.reserve(in.shape.heads());
  memory.reserve(in.shape.heads());
  for (std::size_t head = 0; head < in.shape.heads(); ++head) {
    heads.push_back(empty_head(in, in.id_of(head)));
    memory.push_back(empty_memory(in));
  }
  std::vector<LayerState> layers(in.shape.layers);
  in.heads = std::move(heads);
  in.memory = std::move(memory);
  in.layers = std::move(layers);
}

[[gnu::cold]] inline std::unique_ptr<Inside> make_inside(const CacheShape& shape, Stages stages, const CacheOptions& options) {
  check_stages(stages, shape);
  auto in = std::make_unique<Inside>();
  in->shape = shape;
  in->stages = std::move(stages);
  in->options = options;
  in->executor = options.executor ? options.executor : &in->serial;
  if (!options.memory) in->arena = std::make_shared<Arena>();
  in->block_memory = options.memory ? options.memory : in->arena.get();
  in->workspaces = std::make_shared<WorkspacePool>();
  for (std::size_t stage = 0; stage < in->stages.size(); ++stage) {
    in->stage_node.push_back(in->nodes.size());
    add_nodes(in->nodes, *in->stages[stage], stage);
  }
  in->demands = demands_of(in->nodes);
  in->waits_from = 0;
  while (in->waits_from < in->stages.size() && !in->stages[in->waits_from]->verbs().waits()) ++in->waits_from;
  check_demands(*in);
  in->work.resize(shape.kv_heads);
  in->attention.resize(shape.kv_heads);
  fill_empty(*in);
  return in;
}

/// A cache without heads, of the same shape and stages: it shares the Arena and the workspaces.
inline std::unique_ptr<Inside> sibling_of(const Inside& other) {
  auto in = std::make_unique<Inside>();
  in->shape = other.shape;
  in->stages = other.stages;
  in->options = other.options;
  in->executor = in->options.executor ? in->options.executor : &in->serial;
  in->arena = other.arena;
  in->block_memory = other.block_memory;
  in->workspaces = other.workspaces;
  in->nodes = other.nodes;
  in->stage_node = other.stage_node;
  in->demands = other.demands;
  in->waits_from = other.waits_from;
  in->work.resize(other.work.size());
  in->attention.resize(other.attention.size());
  return in;
}

/// A fork: it shares the blocks too.
inline std::unique_ptr<Inside> fork_inside(const Inside& other) {
  auto in = sibling_of(other);
  in->heads = other.heads;
  for (const HeadMemory& memory : other.memory) {
    HeadMemory& copy = in->memory.emplace_back();
    for (const auto& state : memory.states) copy.states.push_back(state->clone());
    copy.budgets = memory.budgets;
    copy.places.resize(memory.places.size());
    copy.fitted = memory.fitted;
    copy.index_from = memory.index_from;
  }
  in->layers = other.layers;
  in->ramp = other.ramp;
  return in;
}

/// Obtains what a sequence of `tokens` tokens needs, so that decode steps up to there allocate nothing.
inline void reserve(Inside& in, std::size_t tokens) {
  if (in.ramp.size() < tokens + 1) {
    in.ramp.reserve(tokens + 1);
    while (in.ramp.size() < tokens + 1) in.ramp.push_back(static_cast<Position>(in.ramp.size()));
  }
  in.new_positions.resize(std::max<std::size_t>(in.new_positions.size(), 1));
  std::vector<std::pair<std::size_t, std::size_t>> demands;
  for (HeadStore& store : in.heads) {
    const Position window = in.shape.window(in.layer_of(static_cast<std::size_t>(&store - in.heads.data())));
    // What left a window is dead until its block is, and a block has PromptRows rows at most.
    const std::size_t slots =
        window == 0 ? tokens : std::min(tokens, static_cast<std::size_t>(window) + 2 * RowStore::PromptRows);
    store.reserve(slots + 1, in.demands.shrinks || window != 0);
    for (const RowStore* rows : {&store.keys(), &store.values()})
      rows->for_each_demand(slots, [&](std::size_t bytes, std::size_t count) {
        const auto known =
            std::find_if(demands.begin(), demands.end(), [&](const auto& demand) { return demand.first == bytes; });
        if (known != demands.end())
          known->second += count;
        else
          demands.emplace_back(bytes, count);
      });
  }
  for (std::size_t local = 0; local < in.work.size(); ++local) {
    HeadWork& work = in.work[local];
    work.plan.reserve(tokens + 1);
    work.scores.reserve(tokens + 1);
    if (in.demands.selects) work.selection.reset(tokens + 1);
    if (in.demands.remembers) {
      std::size_t bytes = 0;
      for (const Node& node : in.nodes) bytes += node.slot_bytes * (tokens + 1);
      work.saved.columns.resize(std::max(work.saved.columns.size(), bytes));
      work.saved.states.resize(in.nodes.size());
      for (std::size_t node = 0; node < in.nodes.size(); ++node)
        if (!work.saved.states[node]) work.saved.states[node] = in.memory[local].states[node]->clone();
    }
    if (!work.saved.store) {
      work.saved.store.emplace(in.heads[local]);
      work.saved.store->release();
    }
    work.saved.store->reserve(tokens + 1, in.demands.shrinks || in.shape.has_windows());
  }
  if (!in.arena) return;
  std::size_t blocks = 0;
  for (const auto& [bytes, count] : demands) {
    in.arena->reserve(bytes, count);
    blocks += count;
  }
  in.arena->reserve(Block::shared_bytes(), blocks);
}

inline Stats head_stats(const Inside& in, std::size_t head) {
  Stats stats = in.heads[head].stats(in.shape);
  for (const auto& state : in.memory[head].states) stats.metadata += state->bytes();
  return stats;
}
inline Stats layer_stats(const Inside& in, std::size_t layer) {
  Stats sum;
  for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head)
    sum += head_stats(in, head);
  const LayerState& state = in.layers[layer];
  sum.metadata +=
      (state.window.capacity() + state.references.queries.capacity() + state.drafted.capacity()) * sizeof(float);
  return sum;
}
inline Stats cache_stats(const Inside& in) {
  Stats sum;
  for (std::size_t layer = 0; layer < in.shape.layers; ++layer) sum += layer_stats(in, layer);
  sum.metadata += in.ramp.capacity() * sizeof(Position);
  sum.workspace = in.workspaces->bytes();
  sum.spare = in.arena ? in.arena->free_bytes() : 0;
  return sum;
}

}  // namespace kvc::inline KVC_ABI::cache
