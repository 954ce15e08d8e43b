#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/cache/checks.hpp"
#include "kvc/cache/observing.hpp"
#include "kvc/cache/sealing.hpp"
#include "kvc/cache/transaction.hpp"

// Adjacent layers share rows (MiniCache).
namespace kvc::inline KVC_ABI::cache {

/// Whether a stage merges this layer with the one below.
inline bool is_pair(const Inside& in, std::size_t layer) {
  if (!in.demands.merges || layer == 0 || layer >= in.shape.layers) return false;
  return std::any_of(in.stages.begin(), in.stages.end(),
                     [&](const auto& stage) { return stage->works_on(layer) && stage->pairs(layer, in.shape); });
}

/// Whether the tokens that came to a pair's upper layer are offered for merging now: after a prompt all of them, while decoding
/// a block's worth at a time.
inline bool merge_due(const Inside& in, std::size_t layer, Event event) {
  if (event == Event::prompt_chunk || !is_pair(in, layer)) return false;
  const LayerState& state = in.layers[layer];
  return event != Event::decode || state.next_position - state.merged_until >= Position{RowStore::OpenRows};
}

/// Refuses a plan that two layers cannot carry out.
inline void check_pair_plan(const Inside& in, std::size_t stage, std::size_t here, const PairPlan& plan) {
  const auto check = [&](Role role, std::span<const PairPlan::Shared> rows) {
    const std::size_t dim = role == Role::key ? in.shape.head_dim : in.shape.values_dim();
    const LayerState& layer = in.layers[in.layer_of(here)];
    const float limit = role == Role::key ? layer.key_limit : layer.value_limit;
    std::size_t next = plan.first();
    for (const PairPlan::Shared& row : rows) {
      const auto refuse = [&](std::string_view what) {
        fail(ErrorCode::invalid_argument, {in.stages[stage]->type().text, ": the plan of a pair shares the ",
                                           role == Role::key ? "key" : "value", " of slot ", row.slot, " ", what});
      };
      if (row.slot < next || row.slot >= in.heads[here].size())
        refuse("which must be one of those offered, in ascending order");
      if (row.direction.size() != dim) refuse("with a direction that has not as many elements as the rows");
      if (!kernels::active().all_within(row.direction.data(), dim, limit))
        refuse("with a direction that is not finite, or larger than its format holds");
      if (!std::isfinite(row.norm_below) || !std::isfinite(row.norm_here)) refuse("with a norm that is not finite");
      next = row.slot + 1;
    }
  };
  check(Role::key, plan.keys());
  check(Role::value, plan.values());
}

/// Encodes the directions once, in blocks that both heads hold. What does not fill a group of the sealing codec lies dense.
[[gnu::cold]] inline void share_rows(Inside& in, Role role, std::size_t below, std::size_t here,
                       std::span<const PairPlan::Shared> shared, Workspace& workspace) {
  if (shared.empty()) return;
  const auto side = [&](std::size_t head) -> const RowStore& {
    return role == Role::key ? in.heads[head].keys() : in.heads[head].values();
  };
  // A direction is as exact as the wider of both layers' rows.
  const RowStore& store = side(below).is_wide() ? side(below) : side(here);
  in.attention_of(here).window_tokens = 0;
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
      if (role == Role::key)
        turn_back(in.heads[here], in.shape.rotary, row.slot, std::span(directions).last(row.direction.size()));
      slots.push_back(static_cast<std::uint32_t>(row.slot));
      norms_below->push_back(row.norm_below);
      norms_here->push_back(row.norm_here);
    }
    auto block = Block::make(codec, rows, in.block_memory);
    std::vector<Position> positions;
    const SlotTable& known = in.heads[here].slots();
    for (const std::uint32_t slot : slots) positions.push_back(known.position(slot) - known.turns()[slot]);
    codec->encode_at({directions.data(), rows, store.dim()}, positions, block->data(), rows, 0);
    blocks_below.push_back({slots, block, std::move(norms_below)});
    blocks_here.push_back({std::move(slots), std::move(block), std::move(norms_here)});
    shared = shared.subspan(rows);
  }
  in.heads[below].share(role, blocks_below, workspace, true);
  in.heads[here].share(role, blocks_here, workspace, true);
  in.memory[below].changed = in.memory[here].changed = true;
  if (role == Role::key)
    for (const std::size_t head : {below, here}) keys_changed(in, head, 0);
}

/// Offers the tokens that came since the last time to the merging stage and lets both layers share what it merged.
[[gnu::cold]] inline void merge_layers(Inside& in, std::size_t layer, const Occasion& occasion) {
  LayerState& state = in.layers[layer];
  occasion.executor->parallel_for(in.shape.kv_heads, [&](std::size_t local) {
    const WorkspacePool::Lease workspace(*in.workspaces), feed_memory(*in.workspaces);
    const std::size_t here = in.first_head(layer) + local, below = here - in.shape.kv_heads;
    if (in.heads[here].size() != in.heads[below].size())  // as layers that were loaded from different sessions may
      fail(ErrorCode::incompatible,
           {"layers ", layer - 1, " and ", layer, " cannot share rows: head ", local, " has ", in.heads[below].size(),
            " slots in one and ", in.heads[here].size(), " in the other"});
    if (!std::ranges::equal(in.heads[here].slots().turns().runs(), in.heads[below].slots().turns().runs()))
      fail(ErrorCode::incompatible, {"layers ", layer - 1, " and ", layer, " cannot share rows: the positions of head ",
                                     local, " were shifted by other distances in one than in the other"});
    std::size_t first = in.heads[here].size();
    while (first > 0 && in.heads[here].slots().position(first - 1) >= state.merged_until) --first;
    for (std::size_t stage = 0; stage < in.stages.size(); ++stage) {
      const std::size_t node = in.stage_node[stage];
      if (!in.nodes[node].verbs.merge || !in.stages[stage]->pairs(layer, in.shape)) continue;
      PairPlan plan(first);
      {
        Workspace::Frame frame(*feed_memory);
        HeadFeed feed_below(in, below, frame), feed_here(in, here, frame);
        in.stages[stage]->merge(any_head(in, node, below, occasion.event, feed_below),
                                any_head(in, node, here, occasion.event, feed_here), plan);
      }
      check_pair_plan(in, stage, here, plan);
      share_rows(in, Role::key, below, here, plan.keys(), *workspace);
      share_rows(in, Role::value, below, here, plan.values(), *workspace);
    }
  });
  state.merged_until = state.next_position;
}

/// Both layers of a pair are sealed once they are merged: tokens that still wait for it must not be rounded twice. Returns the
/// layers that are finished.
inline Finished merge_and_seal(Inside& in, std::size_t layer, const Occasion& occasion, Transaction& transaction) {
  bool seals = !is_pair(in, layer + 1);
  std::size_t first = layer;
  if (is_pair(in, layer)) {
    const bool merges = merge_due(in, layer, occasion.event);
    if (merges) {
      transaction.before_act_on_layer(layer - 1);
      merge_layers(in, layer, occasion);
      seal_layer(in, layer - 1, occasion);
      first = layer - 1;
    }
    seals = seals && merges;
  }
  if (seals) seal_layer(in, layer, occasion);
  return {first, layer + 1 - first};
}

}  // namespace kvc::inline KVC_ABI::cache
