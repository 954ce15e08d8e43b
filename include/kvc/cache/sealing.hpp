#pragma once
#include <cstddef>

#include "kvc/cache/observing.hpp"

// The last thing that happens to a head in a pass: its streams seal what they allow.
namespace kvc::inline KVC_ABI::cache {

/// Seals what the streams of a head allow now; a head's first seal may fit its streams to it.
inline void seal_head(Inside& in, std::size_t head, Event event, Workspace& workspace) {
  HeadStore& store = in.heads[head];
  const bool prompt_end = event == Event::prompt_end;
  if (event == Event::prompt_chunk || !store.seal_due(prompt_end)) return;
  HeadMemory& memory = in.memory[head];
  if (!memory.fitted)
    for (std::size_t stage = 0; stage < in.stages.size(); ++stage) {
      if (!in.nodes[in.stage_node[stage]].verbs.fit || !in.stages[stage]->works_on(in.layer_of(head))) continue;
      Workspace::Frame frame(workspace);
      HeadFeed feed(in, head, frame);
      store.set_streams(in.stages[stage]->fit(any_head(in, in.stage_node[stage], head, event, feed)));
    }
  memory.fitted = true;
  const std::size_t sealed = store.keys().sealed_rows() + store.values().sealed_rows();
  store.seal(prompt_end, workspace);
  memory.changed |= sealed != store.keys().sealed_rows() + store.values().sealed_rows();
}

inline void seal_layer(Inside& in, std::size_t layer, const Occasion& occasion) {
  occasion.executor->parallel_for(in.shape.kv_heads, [&](std::size_t local) {
    const WorkspacePool::Lease workspace(*in.workspaces);
    seal_head(in, in.first_head(layer) + local, occasion.event, *workspace);
  });
}

}  // namespace kvc::cache
