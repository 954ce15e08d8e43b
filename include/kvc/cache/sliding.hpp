#pragma once
#include <cstddef>
#include <span>

#include "kvc/cache/observing.hpp"

// The windows of layers slide, before any policy plans: it then sees only what later queries can see. To the rest of the cache a
// window is a stage in front of all others.
namespace kvc::inline KVC_ABI::cache {

/// How many slots of a head no later query sees.
inline std::size_t slots_out_of_sight(const Inside& in, std::size_t head) {
  const std::size_t layer = in.layer_of(head);
  const Position window = in.shape.window(layer);
  return window == 0 ? 0 : attention::slots_before_window(in.heads[head], window, in.layers[layer].next_position);
}

inline bool slides(const Inside& in, std::size_t layer) {
  for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head)
    if (slots_out_of_sight(in, head) != 0) return true;
  return false;
}

/// Plans to let go of them. Returns whether the plan changes anything.
inline bool plan_slide(Inside& in, std::size_t head, Event event) {
  if (in.shape.window(in.layer_of(head)) == 0) return false;
  const HeadStore& store = in.heads[head];
  const std::size_t gone = slots_out_of_sight(in, head);
  if (gone == 0 && !(event == Event::prompt_end && store.slid())) return false;
  Plan& plan = in.work_of(head).plan;
  plan.reset(store.size());
  plan.range(gone, store.size());
  return true;
}

/// Carries that plan out on a head that is saved.
inline void slide_head(Inside& in, std::size_t head, Event event, Workspace& workspace) {
  const std::span<const std::uint8_t> stays = in.work_of(head).plan.chosen();
  if (in.attention_of(head).window_tokens != 0) in.attention_of(head).window_tokens = 0;
  in.heads[head].slide(stays,
                       event == Event::prompt_end     ? HeadStore::Slide::prompt_end
                       : event == Event::prompt_chunk ? HeadStore::Slide::open_prompt
                                                      : HeadStore::Slide::between,
                       workspace);
  in.memory[head].changed = true;
  if (!stays.empty() && stays[0] == 0) index_head(in, head, 0, event, workspace);
}

/// Both for every head of a layer whose heads are saved.
inline void slide_layer(Inside& in, std::size_t layer, const Occasion& occasion) {
  if (in.shape.window(layer) == 0) return;
  occasion.executor->parallel_for(in.shape.kv_heads, [&](std::size_t local) {
    const std::size_t head = in.first_head(layer) + local;
    const WorkspacePool::Lease workspace(*in.workspaces);
    if (plan_slide(in, head, occasion.event)) slide_head(in, head, occasion.event, *workspace);
  });
}

}  // namespace kvc::inline KVC_ABI::cache
