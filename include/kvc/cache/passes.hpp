#pragma once
#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "kvc/attention/prompt_pass.hpp"
#include "kvc/attention/token_pass.hpp"
#include "kvc/cache/acting.hpp"

// A pass: tokens are appended to every head of a layer, their queries attend, policies observe and act.
namespace kvc::inline KVC_ABI::cache {

/// Counts the tokens in and says at which positions they stand.
inline void begin_pass(Inside& in, Pass& pass) {
  LayerState& state = in.layers[pass.layer];
  const std::size_t count = pass.count();
  note_limits(in, pass.layer);
  std::size_t slots = 0;
  for (const HeadStore& store : in.heads_of(pass.layer))
    if (store.slots().positions().identity()) slots = std::max(slots, store.size() + count + 1);
  if (in.ramp.size() < slots) {
    const std::size_t known = in.ramp.size(), needed = slots;
    in.ramp.resize(needed + needed / 2 + 64);
    for (std::size_t i = known; i < in.ramp.size(); ++i) in.ramp[i] = static_cast<Position>(i);
  }
  pass.positions = pass.tokens->positions;
  if (pass.positions.empty()) {
    if (in.new_positions.size() < count) in.new_positions.resize(count);
    for (std::size_t i = 0; i < count; ++i) in.new_positions[i] = state.next_position + static_cast<Position>(i);
    pass.positions = std::span(in.new_positions).first(count);
  }
  state.seen += count;
  if (count != 0) state.next_position = pass.positions[count - 1] + 1;
}

inline attention::LayerPass layer_pass(const Inside& in, const Pass& pass) {
  return {.heads = in.heads_of(pass.layer),
          .settings = in.settings(pass.layer),
          .queries = pass.tokens->q,
          .out = pass.out,
          .lse = pass.lse,
          .in_turn = pass.executor == &in.serial};
}

inline void append_head(Inside& in, const Pass& pass, std::size_t head, Transaction& transaction,
                        Workspace& workspace) {
  const std::size_t local = head % in.shape.kv_heads, count = pass.count();
  transaction.before_append(head);
  if (!pass.draft) transaction.before_observe(head);
  if (count == 0) return;
  HeadStore& store = in.heads[head];
  // A prompt's rows lie in order, also where it comes token by token and a window has left rows to reuse.
  const bool behind = pass.draft || (pass.event != Event::decode && in.shape.window(pass.layer) != 0);
  store.append(pass.tokens->k.columns(local * in.shape.head_dim, in.shape.head_dim),
               pass.tokens->v.columns(local * in.shape.values_dim(), in.shape.values_dim()), pass.positions, behind);
  if (pass.event != Event::probe) index_head(in, head, store.size() - count, pass.event, workspace);
}

inline void append_layer(Inside& in, const Pass& pass, Transaction& transaction) {
  pass.executor->parallel_for(in.shape.kv_heads, [&](std::size_t local) {
    const WorkspacePool::Lease workspace(*in.workspaces);
    append_head(in, pass, in.first_head(pass.layer) + local, transaction, *workspace);
  });
}

/// Keeps reference queries of a pass. Which ones stay depends on how many tokens there were in all, and not on how they came.
[[gnu::cold]] inline void remember_references(Inside& in, const Pass& pass, Transaction& transaction) {
  if (in.demands.query_stride == 0) return;
  LayerState& state = in.layers[pass.layer];
  const ConstRows queries = pass.tokens->q;
  const std::size_t dim = in.shape.query_heads * in.shape.head_dim;
  std::size_t stride = std::max(state.references.stride, in.demands.query_stride);
  if (const std::size_t most = in.demands.query_most)
    while (divide_up(state.prompt_tokens + queries.count, stride) > most) stride *= 2;
  if (const References& old = state.references; old.stride != 0 && old.stride != stride) {
    References thinned;
    for (std::size_t i = 0; i < old.positions.size(); ++i) {
      if (old.numbers[i] % stride != 0) continue;
      const auto query = old.queries.begin() + static_cast<std::ptrdiff_t>(i * dim);
      thinned.queries.insert(thinned.queries.end(), query, query + static_cast<std::ptrdiff_t>(dim));
      thinned.positions.push_back(old.positions[i]);
      thinned.numbers.push_back(old.numbers[i]);
    }
    transaction.replace_references(pass.layer, std::move(thinned));
  }
  state.references.stride = stride;
  for (std::size_t t = 0; t < queries.count; ++t) {
    if ((state.prompt_tokens + t) % stride != 0) continue;
    state.references.queries.insert(state.references.queries.end(), queries[t].begin(), queries[t].end());
    state.references.positions.push_back(pass.positions[t]);
    state.references.numbers.push_back(static_cast<std::uint32_t>(state.prompt_tokens + t));
  }
}

/// Keeps the queries of an open prompt, and of probes behind it, that policies will ask for. Those of a probe without an open
/// prompt are for nobody.
inline void remember_queries(Inside& in, const Pass& pass, Transaction& transaction) {
  LayerState& state = in.layers[pass.layer];
  if (pass.event == Event::probe && state.prompt_tokens == 0) return;
  const ConstRows queries = pass.tokens->q;
  const std::size_t dim = in.shape.query_heads * in.shape.head_dim;
  remember_references(in, pass, transaction);
  state.prompt_tokens += queries.count;
  const std::size_t capacity = in.demands.query_window;
  if (capacity == 0 || pass.event == Event::probe) return;
  const std::size_t fresh = std::min(capacity, queries.count), old = std::min(state.window_tokens, capacity - fresh);
  std::vector<float> window((old + fresh) * dim);
  std::copy_n(state.window.data() + (state.window_tokens - old) * dim, old * dim, window.data());
  for (std::size_t t = 0; t < fresh; ++t)
    std::ranges::copy(queries[queries.count - fresh + t], window.begin() + std::ptrdiff_t((old + t) * dim));
  transaction.replace_window(pass.layer, std::move(window), old + fresh);
}

/// The slots that a read-time selector wants for the queries of one token; none: all of them.
inline std::span<const std::uint8_t> select_slots(Inside& in, std::size_t head, ConstRows queries,
                                                  Workspace& workspace) {
  if (!in.demands.selects) return {};
  if (in.memory[head].index_from != Unlimited)
    index_head(in, head, in.memory[head].index_from, Event::decode, workspace);
  Selection& selection = in.work_of(head).selection;
  selection.reset(in.heads[head].size());
  bool selects = false;
  Workspace::Frame frame(workspace);
  HeadFeed feed(in, head, frame);
  for (std::size_t stage = 0; stage < in.stages.size(); ++stage) {
    const std::size_t node = in.stage_node[stage];
    if (!in.nodes[node].verbs.select || !in.stages[stage]->works_on(in.layer_of(head))) continue;
    in.stages[stage]->select(any_head(in, node, head, Event::decode, feed),
                             {queries.data, in.shape.group(), in.shape.head_dim}, selection);
    selects = true;
  }
  const auto chosen = selection.chosen();
  return !selects || detail::first_unset(chosen) == chosen.size() ? std::span<const std::uint8_t>() : chosen;
}

/// Makes the first plan of a head that changes something, or prepares its seal where nothing is planned. Either is carried out
/// once every head of the layer has come so far.
inline void plan_first(Inside& in, std::size_t head, const Occasion& occasion, Workspace& workspace) {
  HeadWork& work = in.work_of(head);
  HeadStore& store = in.heads[head];
  work.planned = plan_slide(in, head, occasion.event);
  work.in_place = false;
  work.next_stage = 0;
  work.seal->step.reset();
  while (!work.planned && work.next_stage < in.stages.size())
    work.planned = plan_head(in, work.next_stage++, head, occasion, {}, workspace);
  work.seals = !work.planned && prepare_seal(in, head, occasion.event);
  if (!work.planned || in.demands.indexes || occasion.event != Event::decode || !only_drops(work.plan)) return;
  work.in_place = store.keeps_in_place(work.plan.chosen(), workspace);
  if (work.in_place) store.reserve_for_keep(work.plan.chosen());
}

/// Whether no stage looks at several heads together on this occasion.
inline bool acts_alone(const Inside& in, Event event) {
  if (in.demands.merges) return false;
  for (std::size_t stage = 0; stage < in.stages.size(); ++stage)
    if (acts_jointly(in, stage, event)) return false;
  return true;
}

/// One token of one head, from append to the plan, on one thread.
inline void token_task(Inside& in, const Pass& pass, std::size_t head, const attention::FeedSet& feeds, bool alone,
                       Transaction& transaction) {
  const WorkspacePool::Lease workspace(*in.workspaces);
  append_head(in, pass, head, transaction, *workspace);
  const std::size_t local = head % in.shape.kv_heads, width = in.shape.group() * in.shape.head_dim;
  attention::HeadAttention& attention = in.attention_of(head);
  attention.forget();
  {
    const auto selected = select_slots(in, head, pass.tokens->q.columns(local * width, width), *workspace);
    Workspace::Frame frame(*workspace);
    attention::attend_head(layer_pass(in, pass), local, selected, feeds, attention, frame);
    if (!pass.draft) observe_head(in, pass, head, in.heads[head].size() - 1, *workspace);
  }
  if (alone && !pass.draft && !pass.acts_later) plan_first(in, head, {.event = pass.event}, *workspace);
}

/// What is left to do for the heads of a layer whose first plans are made.
enum class Remaining : std::uint8_t {
  nothing,
  in_place,    ///< slots are dropped where they are, or a prepared seal is done: neither can fail
  everything,  ///< plans that move rows, further stages, seals
};

/// What is left to do for one head.
inline Remaining remaining_of(const Inside& in, std::size_t head) {
  const HeadWork& work = in.work_of(head);
  const HeadStore& store = in.heads[head];
  if (!work.planned)
    return !work.seals ? Remaining::nothing : work.seal->step ? Remaining::in_place : Remaining::everything;
  // What a stream seals, and what later stages plan, depends on the slots that are left.
  if (!work.in_place || store.keys().seals() || store.values().seals()) return Remaining::everything;
  for (std::size_t stage = work.next_stage; stage < in.stages.size(); ++stage)
    if (in.nodes[in.stage_node[stage]].verbs.evict && in.stages[stage]->works_on(in.layer_of(head)))
      return Remaining::everything;
  return Remaining::in_place;
}
inline Remaining remaining(const Inside& in, std::size_t layer) {
  Remaining most = Remaining::nothing;
  for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head)
    most = std::max(most, remaining_of(in, head));
  return most;
}

/// Does it for one head. `what`: the most that is left for any head.
inline void finish_head(Inside& in, std::size_t head, const Occasion& occasion, Remaining what,
                        Transaction& transaction) {
  HeadWork& work = in.work_of(head);
  if (!work.planned && !work.seals) return;
  if (what == Remaining::in_place) {  // nothing here may ask for memory
    if (work.planned) in.heads[head].keep_in_place(work.plan.chosen());
    if (work.seals) {
      keys_changed(in, head, work.seal->step->first_key());
      work.seal->step->commit();
    }
    work.seal->step.reset();
    work.planned = work.seals = false;
    in.memory[head].changed = true;
    return;
  }
  const WorkspacePool::Lease workspace(*in.workspaces);
  work.seal->step.reset();
  transaction.before_act(head);
  if (work.planned) {
    work.next_stage == 0 ? slide_head(in, head, occasion.event, *workspace)
                         : carry_out(in, head, occasion.event, *workspace);
    for (std::size_t stage = work.next_stage; stage < in.stages.size(); ++stage)
      if (plan_head(in, stage, head, occasion, {}, *workspace)) carry_out(in, head, occasion.event, *workspace);
  }
  work.planned = work.seals = false;
  seal_head(in, head, occasion.event, *workspace);
}

/// Runs the tasks that finish heads. What is done in place cannot fail, so an executor that throws in the middle does not stop
/// it: the tasks that are left are done here.
template <class Task>
void finish_all(std::size_t count, Remaining what, Executor& executor, Task task) {
#if defined(__cpp_exceptions)
  try {
    executor.parallel_for(count, task);
  } catch (...) {
    if (what == Remaining::everything) throw;
    for (std::size_t i = 0; i < count; ++i) task(i);
  }
#else
  static_cast<void>(what);
  executor.parallel_for(count, task);
#endif
}

/// Carries out the plans of a layer that acts alone, and seals.
inline void finish_heads(Inside& in, const Pass& pass, const Occasion& occasion, Transaction& transaction) {
  const Remaining what = remaining(in, pass.layer);
  if (what == Remaining::nothing) return;
  finish_all(in.shape.kv_heads, what, *occasion.executor, [&](std::size_t local) {
    finish_head(in, in.first_head(pass.layer) + local, occasion, what, transaction);
  });
}

/// The policies' part of a pass whose attention is done.
inline Finished act_on_pass(Inside& in, const Pass& pass, bool planned, Transaction& transaction) {
  const Occasion occasion{.event = pass.event, .executor = pass.executor};
  if (pass.event == Event::probe || pass.draft || pass.acts_later) return {};
  if (!acts_alone(in, pass.event)) return act(in, pass.layer, occasion, transaction);
  if (!planned)
    pass.executor->parallel_for(in.shape.kv_heads, [&](std::size_t local) {
      const WorkspacePool::Lease workspace(*in.workspaces);
      plan_first(in, in.first_head(pass.layer) + local, occasion, *workspace);
    });
  finish_heads(in, pass, occasion, transaction);
  return {pass.layer, 1};
}

/// One token, whose heads are independent tasks.
inline bool is_token(const Inside& in, const Pass& pass) {
  if (pass.event != Event::decode || pass.count() != 1) return false;
  if (pass.draft && !in.demands.selects) return false;
  return true;
}

/// Everything that a pass does. Returns the layers that are finished by it.
inline Finished run_pass(Inside& in, Pass& pass, Transaction& transaction) {
  begin_pass(in, pass);
  const std::size_t heads = in.shape.kv_heads, first = in.first_head(pass.layer);
  const bool prompt = pass.event == Event::prompt_chunk || pass.event == Event::prompt_end;
  const attention::FeedSet feeds = pass.draft ? attention::FeedSet{} : feeds_after(in, pass.layer, pass.event);
  bool planned = false;
  if (is_token(in, pass)) {
    std::size_t parts = 1;
    if (!feeds.any() && !in.demands.selects && heads < 64)
      for (const HeadStore& store : in.heads_of(pass.layer)) parts = std::max(parts, attention::parts_of(store, 1));
    if (parts == 1) {
      planned = acts_alone(in, pass.event);
      pass.executor->parallel_for(
          heads, [&](std::size_t local) { token_task(in, pass, first + local, feeds, planned, transaction); });
      return act_on_pass(in, pass, planned, transaction);
    }
    append_layer(in, pass, transaction);
    attention::attend_parts(layer_pass(in, pass), parts, in.part_memory, *pass.executor, *in.workspaces);
  } else {
    append_layer(in, pass, transaction);
    if (prompt) open_prompt(in, pass.layer);
    if (prompt || pass.event == Event::probe) remember_queries(in, pass, transaction);
    attention::LayerPass attended = layer_pass(in, pass);
    // Where the window slides, what the last queries look at is known only then.
    if (pass.event == Event::prompt_end && !slides(in, pass.layer)) attended.window = in.demands.query_window;
    attention::attend_prompt(attended, feeds, in.attention, in.feed_memory, *pass.executor, *in.workspaces);
  }
  if (!pass.draft && (in.demands.observes || feeds.any()))
    pass.executor->parallel_for(heads, [&](std::size_t local) {
      const WorkspacePool::Lease workspace(*in.workspaces);
      observe_head(in, pass, first + local, in.heads[first + local].size() - pass.count(), *workspace);
    });
  return act_on_pass(in, pass, planned, transaction);
}

}  // namespace kvc::inline KVC_ABI::cache
