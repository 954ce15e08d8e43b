#pragma once
#include <cstddef>

#include "kvc/cache/observing.hpp"

// The last thing that happens to a head in a pass: its streams seal what they allow.
namespace kvc::inline KVC_ABI::cache {

/// Whether a stage wants to fit its streams to a head that seals for the first time.
inline bool fits_first(const Inside& in, std::size_t head) {
  if (in.memory[head].fitted) return false;
  for (std::size_t stage = 0; stage < in.stages.size(); ++stage)
    if (in.nodes[in.stage_node[stage]].verbs.fit && in.stages[stage]->works_on(in.layer_of(head))) return true;
  return false;
}

/// Seals what the streams of a head allow now; a head's first seal may fit its streams to it.
inline void seal_head(Inside& in, std::size_t head, Event event, Workspace& workspace) {
  HeadStore& store = in.heads[head];
  const bool prompt_end = event == Event::prompt_end;
  if (event == Event::prompt_chunk || !store.seal_due(prompt_end)) return;
  HeadMemory& memory = in.memory[head];
  if (fits_first(in, head))
    for (std::size_t stage = 0; stage < in.stages.size(); ++stage) {
      if (!in.nodes[in.stage_node[stage]].verbs.fit || !in.stages[stage]->works_on(in.layer_of(head))) continue;
      Workspace::Frame frame(workspace);
      HeadFeed feed(in, head, frame);
      store.set_streams(in.stages[stage]->fit(any_head(in, in.stage_node[stage], head, event, feed)));
    }
  memory.fitted = true;
  const std::size_t sealed = store.keys().sealed_rows() + store.values().sealed_rows();
  keys_changed(in, head, store.seal(prompt_end, workspace, true));
  memory.changed |= sealed != store.keys().sealed_rows() + store.values().sealed_rows();
}

/// Prepares the seal of a head, if it can be done in two halves; what cannot is left to seal_head(). Returns whether anything is
/// to be sealed.
inline bool prepare_seal(Inside& in, std::size_t head, Event event) {
  HeadStore& store = in.heads[head];
  WaitingSeal& seal = *in.work_of(head).seal;
  seal.step.reset();
  const bool prompt_end = event == Event::prompt_end;
  if (event == Event::prompt_chunk || !(store.keys().seals() || store.values().seals())) return false;
  seal.step.emplace(store, prompt_end, seal.memory);
  const bool due = !seal.step->done();
  if (due && seal.step->is_one_piece() && !fits_first(in, head))
    seal.step->prepare();
  else
    seal.step.reset();
  return due;
}

inline void seal_layer(Inside& in, std::size_t layer, const Occasion& occasion) {
  occasion.executor->parallel_for(in.shape.kv_heads, [&](std::size_t local) {
    const WorkspacePool::Lease workspace(*in.workspaces);
    seal_head(in, in.first_head(layer) + local, occasion.event, *workspace);
  });
}

}  // namespace kvc::inline KVC_ABI::cache
