#pragma once
#include "kvc/cache/impl.hpp"

// Policies at work: observe, allocate, evict, seal, in that order, over the stages of the pipeline.
namespace kvc::inline KVC_ABI {

inline AnyHead CacheCore::Impl::any_head(std::size_t stage, std::size_t head, Event event, HeadSource& source) {
  HeadStore& store = heads_[head];
  HeadMemory& memory = memory_[head];
  AnyHead any;
  HeadView& view = any.view;
  view.id = id_of(head);
  view.event = event;
  view.seen = store.seen();
  view.incoming = event == Event::make_room ? incoming_ : 0;
  view.shape = &shape_;
  view.positions =
      store.positions().identity() ? std::span<const Position>(ramp_).first(store.size()) : store.positions().entries();
  view.multiplicity = store.multiplicity();
  view.source = &source;
  view.budget =
      memory.budgets[stage] != Unlimited ? memory.budgets[stage] : stages_[stage]->budget(view.id, view.seen, shape_);
  any.slots = store.column(stage);
  any.state = memory.states[stage].get();
  return any;
}

inline detail::HeadFeed CacheCore::Impl::feed_of(std::size_t head, Workspace& workspace) const {
  const LayerState& state = layers_[head / shape_.kv_heads];
  const std::size_t dim = shape_.query_heads * shape_.head_dim;
  const HeadWork& memory = work_[head % shape_.kv_heads];
  detail::HeadFeed feed(heads_[head], settings(), head % shape_.kv_heads,
                        {state.window.data(), state.window_tokens, dim}, workspace);
  if (memory.window_tokens != 0 && memory.window_head == head)
    feed.know_sums(memory.window_tokens, memory.window_sums.data());
  return feed;
}

inline void CacheCore::Impl::index_head(std::size_t head, std::size_t from, Event event,
                                        Workspace& workspace) {
  if (!indexes_) return;
  detail::HeadFeed feed = feed_of(head, workspace);
  feed.reuse(work(head).keys);
  for (std::size_t stage = 0; stage < stages_.size(); ++stage)
    if (stages_[stage]->verbs().index) stages_[stage]->index(any_head(stage, head, event, feed), from);
}

inline void CacheCore::Impl::observe_head(const Pass& pass, std::size_t head, std::size_t first_new,
                                          Workspace& workspace) {
  if (!observes_) return;
  Workspace::Frame frame(workspace);
  HeadWork& memory = work(head);
  const std::size_t local = head % shape_.kv_heads, group = shape_.group(), dim = shape_.head_dim,
                    tokens = pass.tokens->q.count;
  Observation seen;
  seen.event = pass.event;
  seen.first_new = first_new;
  seen.queries_count = tokens;
  seen.probe_begin = pass.probe_begin;
  seen.probe_end = pass.probe_end;
  if (pass.feed != Feed::none) seen.attention = memory.attention;
  if (needs_.queries) {
    const std::size_t floats = tokens * group * dim;
    const auto queries = frame.take(floats), unrotated = frame.take(floats);
    for (std::size_t t = 0; t < tokens; ++t)
      std::ranges::copy(pass.tokens->q[t].subspan(local * group * dim, group * dim),
                        queries.begin() + std::ptrdiff_t(t * group * dim));
    std::ranges::copy(queries, unrotated.begin());
    for (std::size_t row = 0; row < tokens * group; ++row)
      rotate(unrotated.subspan(row * dim, dim), shape_.rotary, -double(heads_[head].position(first_new + row / group)));
    seen.queries = {queries.data(), tokens * group, dim};
    seen.unrotated_queries = {unrotated.data(), tokens * group, dim};
  }
  if (needs_.external_scores) {
    const auto scores = frame.take(tokens);
    for (std::size_t t = 0; t < tokens; ++t) scores[t] = pass.tokens->scores[t * shape_.kv_heads + local];
    seen.scores = scores;
  }
  detail::HeadFeed feed = feed_of(head, workspace);
  for (std::size_t stage = 0; stage < stages_.size(); ++stage)
    if (stages_[stage]->verbs().observe) stages_[stage]->observe(any_head(stage, head, pass.event, feed), seen);
  memory_[head].changed = true;
}

inline void CacheCore::Impl::evict_head(std::size_t stage, std::size_t head, Event event, Workspace& workspace) {
  if (!stages_[stage]->verbs().evict) return;
  detail::HeadFeed feed = feed_of(head, workspace);
  const AnyHead any = any_head(stage, head, event, feed);
  Plan& plan = work(head).plan;
  plan.reset(any.view);
  stages_[stage]->evict(any, plan);
  execute(head, event, workspace);
}

/// Carries out the plan of a head: rewrites, evictions, multiplicities; then tells the indexes.
inline void CacheCore::Impl::execute(std::size_t head, Event event, Workspace& workspace) {
  HeadStore& store = heads_[head];
  HeadMemory& memory = memory_[head];
  const Plan& plan = work(head).plan;
  std::size_t from = store.size();
  work(head).window_tokens = 0;
  for (const Plan::Rewrite& rewrite : plan.rewrites()) {
    store.rewrite(rewrite.slot, rewrite.key, rewrite.value);
    from = std::min(from, rewrite.slot);
  }
  const auto chosen = plan.chosen();
  const std::size_t dropped = detail::first_unset(chosen);
  if (dropped < chosen.size()) {
    store.keep(chosen, event == Event::prompt_end, workspace);
    from = std::min(from, dropped);
  }
  // After the eviction: a head that keeps few slots of a long prompt needs no numbers for those that went.
  for (const auto& [slot, tokens] : plan.multiplicities()) {
    if (!chosen[slot]) continue;
    const auto behind = chosen.begin() + static_cast<std::ptrdiff_t>(slot);
    store.set_multiplicity(static_cast<std::size_t>(std::count(chosen.begin(), behind, std::uint8_t{1})), tokens);
  }
  memory.changed |= from < chosen.size() || !plan.multiplicities().empty();
  if (from < chosen.size()) index_head(head, from, event, workspace);
}

/// All stages of a pipeline in which no stage looks beyond one head.
inline void CacheCore::Impl::act_alone(std::size_t head, Event event, Workspace& workspace) {
  if (event == Event::probe) return;
  for (std::size_t stage = 0; stage < stages_.size(); ++stage) evict_head(stage, head, event, workspace);
  if (event == Event::prompt_chunk) return;
  const std::size_t sealed = heads_[head].keys().sealed_rows() + heads_[head].values().sealed_rows();
  heads_[head].seal(event == Event::prompt_end, workspace);
  memory_[head].changed |= sealed != heads_[head].keys().sealed_rows() + heads_[head].values().sealed_rows();
}

/// Asks a stage for the budgets of heads [first, first + count), of a layer or `over_layers`. With a prompt it starts from
/// its own Budget, whatever earlier chunks or prompts got; with generated tokens from what it allocated last.
inline void CacheCore::Impl::allocate(std::size_t stage, std::size_t first, std::size_t count, Event event,
                                      bool over_layers) {
  const bool starts = over_layers || !stages_[stage]->verbs().allocate_all;
  const bool prompt = event == Event::prompt_chunk || event == Event::prompt_end;
  const WorkspacePool::Lease workspace(*workspaces_);
  auto& [feeds, heads, budgets] = joint_;
  feeds.clear();
  heads.clear();
  budgets.clear();
  feeds.reserve(count);
  for (std::size_t head = first; head < first + count; ++head) {
    if (prompt && starts) memory_[head].budgets[stage] = Unlimited;
    feeds.push_back(feed_of(head, *workspace));
    heads.push_back(any_head(stage, head, event, feeds.back()));
    budgets.push_back(heads.back().view.budget);
  }
  if (over_layers)
    stages_[stage]->allocate_all(heads, budgets);
  else
    stages_[stage]->allocate(heads, budgets);
  for (std::size_t i = 0; i < count; ++i) memory_[first + i].budgets[stage] = budgets[i];
}

/// Stages [first, last) of one layer; each stage allocates over the heads, then evicts from each.
inline void CacheCore::Impl::act_layer(std::size_t layer, Event event, std::size_t first_stage,
                                       std::size_t last_stage) {
  const std::size_t first = first_head(layer);
  for (std::size_t stage = first_stage; stage < last_stage; ++stage) {
    if (stages_[stage]->verbs().allocate) allocate(stage, first, shape_.kv_heads, event, false);
    executor().parallel_for(shape_.kv_heads, [&](std::size_t local) {
      const WorkspacePool::Lease workspace(*workspaces_);
      evict_head(stage, first + local, event, *workspace);
    });
  }
}

inline void CacheCore::Impl::seal_layer(std::size_t layer, Event event) {
  if (event == Event::prompt_chunk) return;
  executor().parallel_for(shape_.kv_heads, [&](std::size_t local) {
    const WorkspacePool::Lease workspace(*workspaces_);
    HeadStore& store = heads_[first_head(layer) + local];
    const std::size_t sealed = store.keys().sealed_rows() + store.values().sealed_rows();
    store.seal(event == Event::prompt_end, *workspace);
    memory_[first_head(layer) + local].changed |= sealed != store.keys().sealed_rows() + store.values().sealed_rows();
  });
}

/// Whether a stage merges this layer with the one below.
inline bool CacheCore::Impl::is_pair(std::size_t layer) const {
  if (!merges_ || layer == 0 || layer >= shape_.layers) return false;
  return std::any_of(stages_.begin(), stages_.end(), [&](const auto& stage) { return stage->pairs(layer, shape_); });
}

/// Offers the tokens that came since the last time to the merging stage and lets both layers share what it merged: after
/// a prompt all of them, while decoding a block's worth at a time. Returns whether any were offered.
inline bool CacheCore::Impl::merge_layers(std::size_t layer, Event event) {
  if (event == Event::prompt_chunk) return false;
  LayerState& state = layers_[layer];
  if (event == Event::decode && state.next_position - state.merged_until < Position{RowStore::OpenRows}) return false;
  executor().parallel_for(shape_.kv_heads, [&](std::size_t local) {
    const WorkspacePool::Lease workspace(*workspaces_);
    const std::size_t here = first_head(layer) + local, below = here - shape_.kv_heads;
    std::size_t first = heads_[here].size();
    while (first > 0 && heads_[here].position(first - 1) >= state.merged_until) --first;
    for (std::size_t stage = 0; stage < stages_.size(); ++stage) {
      if (!stages_[stage]->verbs().merge || !stages_[stage]->pairs(layer, shape_)) continue;
      detail::HeadFeed feed_below = feed_of(below, *workspace), feed_here = feed_of(here, *workspace);
      PairPlan plan(first);
      stages_[stage]->merge(any_head(stage, below, event, feed_below), any_head(stage, here, event, feed_here), plan);
      share_rows(Role::key, below, here, plan.keys(), *workspace);
      share_rows(Role::value, below, here, plan.values(), *workspace);
    }
  });
  state.merged_until = state.next_position;
  return true;
}

/// Encodes the directions once, in blocks that both heads hold. What does not fill a group of the sealing codec lies dense.
inline void CacheCore::Impl::share_rows(Role role, std::size_t below, std::size_t here,
                                        std::span<const PairPlan::Shared> shared, Workspace& workspace) {
  if (shared.empty()) return;
  const RowStore& store = role == Role::key ? heads_[here].keys() : heads_[here].values();
  work(here).window_tokens = 0;
  std::vector<SharedRows> blocks_below, blocks_here;
  std::vector<float> directions;
  while (!shared.empty()) {
    auto codec = store.sharing_codec();
    std::size_t rows = std::min(shared.size(), RowStore::PromptRows) / codec->granule() * codec->granule();
    if (rows == 0) {
      codec = store.dense_codec();
      rows = std::min(shared.size(), RowStore::PromptRows);
    }
    directions.clear();
    std::vector<std::uint32_t> slots;
    auto norms_below = std::make_shared<std::vector<float>>(), norms_here = std::make_shared<std::vector<float>>();
    for (const PairPlan::Shared& row : shared.first(rows)) {
      directions.insert(directions.end(), row.direction.begin(), row.direction.end());
      slots.push_back(static_cast<std::uint32_t>(row.slot));
      norms_below->push_back(row.norm_below);
      norms_here->push_back(row.norm_here);
    }
    auto block = Block::make(codec, rows, block_memory_);
    std::vector<Position> positions;
    for (const std::uint32_t slot : slots) positions.push_back(heads_[here].position(slot));
    codec->encode_at({directions.data(), rows, store.dim()}, positions, block->data(), rows, 0);
    blocks_below.push_back({slots, block, std::move(norms_below)});
    blocks_here.push_back({std::move(slots), std::move(block), std::move(norms_here)});
    shared = shared.subspan(rows);
  }
  heads_[below].share(role, blocks_below, workspace);
  heads_[here].share(role, blocks_here, workspace);
  memory_[below].changed = memory_[here].changed = true;
}

/// After a pass over a layer, and after the last layer what waits for all of them.
inline void CacheCore::Impl::act(std::size_t layer, Event event) {
  if (event == Event::probe) return;
  if (acts_alone_) {
    executor().parallel_for(shape_.kv_heads, [&](std::size_t local) {
      const WorkspacePool::Lease workspace(*workspaces_);
      act_alone(first_head(layer) + local, event, *workspace);
    });
    return finish_layer(layer, event);
  }
  act_layer(layer, event, 0, std::min(joint_from_, stages_.size()));
  if (joint_from_ >= stages_.size()) {
    // Both layers of a pair are sealed once they are merged: tokens that still wait for it must not be rounded twice.
    bool seals = !is_pair(layer + 1);
    if (is_pair(layer)) {
      const bool merged = merge_layers(layer, event);
      if (merged) seal_layer(layer - 1, event);
      finish_layer(layer - 1, event);
      seals = seals && merged;
    }
    if (seals) seal_layer(layer, event);
    return finish_layer(layer, event);
  }
  if (layer + 1 != shape_.layers) return;
  for (std::size_t stage = joint_from_; stage < stages_.size(); ++stage) {
    if (stages_[stage]->verbs().allocate_all) allocate(stage, 0, heads_.size(), event, true);
    for (std::size_t each = 0; each < shape_.layers; ++each) act_layer(each, event, stage, stage + 1);
  }
  for (std::size_t each = 0; each < shape_.layers; ++each) {
    seal_layer(each, event);
    finish_layer(each, event);
  }
}

/// Notes what truncate() must know, and lets go of the prompt's queries once the policy has acted on them.
inline void CacheCore::Impl::finish_layer(std::size_t layer, Event event) {
  LayerState& state = layers_[layer];
  for (std::size_t head = first_head(layer); head < first_head(layer) + shape_.kv_heads; ++head) {
    if (memory_[head].changed) state.changed_at = state.next_position;
    memory_[head].changed = false;
  }
  if (event == Event::prompt_end) {
    for (HeadWork& memory : work_) memory.window_tokens = 0;
    std::vector<float>().swap(state.window);
    state.window_tokens = 0;
  }
}

}  // namespace kvc
