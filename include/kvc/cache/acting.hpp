#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <span>
#include <vector>

#include "kvc/cache/checks.hpp"
#include "kvc/cache/merging.hpp"
#include "kvc/cache/observing.hpp"
#include "kvc/cache/sealing.hpp"
#include "kvc/cache/sliding.hpp"
#include "kvc/cache/transaction.hpp"

// Policies act, stage by stage: they score, allocate, plan; the core carries the plans out; then adjacent layers merge, and
// streams seal.
namespace kvc::inline KVC_ABI::cache {

/// Refuses a plan that no head can carry out.
inline void check_plan(const Inside& in, std::size_t stage, std::size_t head, const Plan& plan) {
  const HeadStore& store = in.heads[head];
  const auto refuse = [&](std::size_t slot, std::initializer_list<Fragment> what) {
    fail(ErrorCode::invalid_argument, {in.stages[stage]->type().text, ": the plan for slot ", slot, " ", joined(what)});
  };
  for (std::size_t i = 0; i < plan.rewrites(); ++i) {
    const LayerState& layer = in.layers[in.layer_of(head)];
    const Plan::Rewrite rewrite = plan.rewrite_at(i);
    // A key that is turned back before it is stored may get an element as large as two of its own together.
    const float key_limit = store.slots().turns()[rewrite.slot] == 0 ? layer.key_limit : 0.7f * layer.key_limit;
    if (!kernels::active().all_within(rewrite.key.data(), rewrite.key.size(), key_limit))
      refuse(rewrite.slot, {"has a key that is not finite, or larger than its format holds"});
    if (!kernels::active().all_within(rewrite.value.data(), rewrite.value.size(), layer.value_limit))
      refuse(rewrite.slot, {"has a value that is not finite, or larger than its format holds"});
  }
  for (const auto& [slot, tokens] : plan.multiplicities())
    if (slot >= store.size())
      refuse(slot, {"has a multiplicity, but the head has ", store.size(), " slots"});
    else if (!(tokens > 0) || !std::isfinite(tokens))
      refuse(slot, {"has a multiplicity of ", tokens, ", which must be positive and finite"});
  for (const auto& [slot, precision_class] : plan.precisions())
    if (slot >= store.size())
      refuse(slot, {"has a precision class, but the head has ", store.size(), " slots"});
    else if (precision_class > store.precision_classes())
      refuse(slot, {"has precision class ", precision_class, ", but the streams have ", store.precision_classes(),
                    " besides class 0"});
}

/// Lets one stage plan for one head. `scored`: what a joint verb said about the head's slots; without data the stage is asked
/// for its own scores. Returns whether the plan changes anything.
inline bool plan_head(Inside& in, std::size_t stage, std::size_t head, const Occasion& occasion,
                      std::span<const float> scored, Workspace& workspace) {
  const Stage& policy = *in.stages[stage];
  const std::size_t node = in.stage_node[stage];
  const Stage::Verbs& verbs = in.nodes[node].verbs;
  if (!verbs.evict || !policy.works_on(in.layer_of(head))) return false;
  Workspace::Frame frame(workspace);
  HeadFeed feed(in, head, frame);
  AnyHead any = any_head(in, node, head, occasion.event, feed, occasion.incoming);
  HeadWork& work = in.work_of(head);
  any.view.scores = scored;
  if (scored.data() == nullptr && verbs.score && any.view.acts && any.view.size() > any.view.budget) {
    if (work.scores.size() < any.view.size()) work.scores.resize(any.view.size());
    const auto scores = std::span(work.scores).first(any.view.size());
    policy.score(any, scores);
    any.view.scores = scores;
  }
  work.plan.reset(any.view);
  policy.evict(any, work.plan);
  check_plan(in, stage, head, work.plan);
  const auto chosen = work.plan.chosen();
  return work.plan.rewrites() != 0 || !work.plan.multiplicities().empty() || !work.plan.precisions().empty() ||
         detail::first_unset(chosen) != chosen.size();
}

/// Whether the plan of a head only drops slots.
inline bool only_drops(const Plan& plan) {
  return plan.rewrites() == 0 && plan.multiplicities().empty() && plan.precisions().empty();
}

/// A key that a policy wrote, as it is to be stored: it lives as long as `frame`, or as the policy's own.
inline std::span<const float> stored_key(const HeadStore& store, const Rotary& rotary, std::size_t slot,
                                         std::span<const float> key, Workspace::Frame& frame) {
  if (key.empty() || store.slots().turns()[slot] == 0) return key;
  const std::span<float> turned = frame.take(key.size());
  std::ranges::copy(key, turned.begin());
  turn_back(store, rotary, slot, turned);
  return turned;
}

/// Carries out the plan of a head: rewrites, evictions, multiplicities and classes of precision; then tells the indexes.
inline void carry_out(Inside& in, std::size_t head, Event event, Workspace& workspace) {
  HeadStore& store = in.heads[head];
  const Plan& plan = in.work_of(head).plan;
  std::size_t from = store.size();
  // Heads of several layers act at the same time, and those with the same number in their layers share this.
  if (in.attention_of(head).window_tokens != 0) in.attention_of(head).window_tokens = 0;
  for (std::size_t i = 0; i < plan.rewrites(); ++i) {
    const Plan::Rewrite rewrite = plan.rewrite_at(i);
    Workspace::Frame frame(workspace);
    store.rewrite(rewrite.slot, stored_key(store, in.shape.rotary, rewrite.slot, rewrite.key, frame), rewrite.value);
    from = std::min(from, rewrite.slot);
  }
  for (const auto& [slot, precision_class] : plan.precisions()) store.set_precision(slot, precision_class);
  const auto chosen = plan.chosen();
  const std::size_t dropped = detail::first_unset(chosen);
  if (dropped < chosen.size()) {
    store.keep(chosen, event == Event::prompt_end, workspace, true);
    from = std::min(from, dropped);
  }
  // After the eviction: a head that keeps few slots of a long prompt needs no numbers for those that went.
  for (const auto& [slot, tokens] : plan.multiplicities()) {
    if (!chosen[slot]) continue;
    const auto behind = chosen.begin() + static_cast<std::ptrdiff_t>(slot);
    store.set_multiplicity(static_cast<std::size_t>(std::count(chosen.begin(), behind, std::uint8_t{1})), tokens);
  }
  const bool slides = in.shape.window(in.layer_of(head)) != 0;
  if (event == Event::prompt_end && in.demands.rests && !slides) store.pack_positions();
  in.memory[head].changed = true;
  if (from < chosen.size()) index_head(in, head, from, event, workspace);
}

/// Joint verbs of one stage over the heads [first, first + count): their scores, then their budgets. With a prompt, budgets
/// start from the policy's own, whatever earlier prompts got; with generated tokens from what it allocated last.
inline void decide_jointly(Inside& in, std::size_t stage, std::size_t first, std::size_t count,
                           const Occasion& occasion, bool cascades) {
  const Stage& policy = *in.stages[stage];
  const Stage::Verbs& verbs = in.nodes[in.stage_node[stage]].verbs;
  const WorkspacePool::Lease feed_memory(*in.workspaces), verb_memory(*in.workspaces);
  Workspace::Frame frame(*feed_memory);
  std::vector<HeadFeed> feeds;
  std::vector<AnyHead> heads;
  std::vector<std::size_t> numbers, budgets;
  feeds.reserve(count);
  for (std::size_t head = first; head < first + count; ++head) {
    if (!policy.works_on(in.layer_of(head))) continue;
    if (occasion.event != Event::decode) in.memory[head].budgets[stage] = {};
    feeds.emplace_back(in, head, frame);
    feeds.back().run_on(*occasion.executor);
    heads.push_back(any_head(in, in.stage_node[stage], head, occasion.event, feeds.back(), occasion.incoming));
    numbers.push_back(head);
    budgets.push_back(heads.back().view.budget);
  }
  // Every head has a place, also in layers that the stage does not work on.
  if (verbs.scores()) in.joint_scores.resize(std::max(in.joint_scores.size(), first + count));
  if (heads.empty()) return;
  for (std::size_t i = 0; policy.wants_equal_slots() != EqualSlots::none && i < heads.size(); ++i) {
    const HeadView &head = heads[i].view, &other = heads[i / in.shape.kv_heads * in.shape.kv_heads].view;
    if (head.size() != other.size())
      fail(ErrorCode::incompatible,
           {policy.type().text, " reads the heads of a layer slot by slot, but in layer ", head.id.layer, " head ",
            head.id.head, " has ", head.size(), " slots, and head 0 has ", other.size()});
  }
  if (verbs.scores()) {
    std::vector<std::span<float>> spans;
    for (std::size_t i = 0; i < heads.size(); ++i) {
      std::vector<float>& scores = in.joint_scores[numbers[i]];
      scores.resize(heads[i].view.size());
      spans.emplace_back(scores);
      heads[i].view.scores = scores;
    }
    if (verbs.score)
      occasion.executor->parallel_for(heads.size(), [&](std::size_t i) {
        if (spans[i].empty()) return;
        const WorkspacePool::Lease own(*in.workspaces);
        Workspace::Frame own_frame(*own);
        HeadFeed feed(in, numbers[i], own_frame);
        AnyHead any = heads[i];
        any.view.source = &feed;
        any.view.scores = {};
        policy.score(any, spans[i]);
      });
    if (verbs.score_layer)
      for (std::size_t i = 0; i < heads.size(); i += in.shape.kv_heads)
        policy.score_layer(std::span(heads).subspan(i, in.shape.kv_heads),
                           std::span(spans).subspan(i, in.shape.kv_heads), *verb_memory);
    if (verbs.score_all) policy.score_all(heads, spans, *verb_memory);
  }
  const bool over_layers = count > in.shape.kv_heads || in.shape.layers == 1;
  if (verbs.allocate && !cascades)
    for (std::size_t i = 0; i < heads.size(); i += in.shape.kv_heads)
      policy.allocate(std::span(heads).subspan(i, in.shape.kv_heads), std::span(budgets).subspan(i, in.shape.kv_heads),
                      *verb_memory);
  if (verbs.cascade && cascades) policy.cascade(heads, budgets, *verb_memory);
  if (verbs.allocate_all && over_layers && !cascades) policy.allocate_all(heads, budgets, *verb_memory);
  if (!verbs.allocates()) return;
  for (std::size_t i = 0; i < heads.size(); ++i) {
    const HeadView& view = heads[i].view;
    in.memory[numbers[i]].budgets[stage] = {budgets[i], policy.budget(view.id, view.seen, in.shape)};
  }
}

/// Whether a stage acts on several heads together on this occasion.
inline bool acts_jointly(const Inside& in, std::size_t stage, Event event) {
  const Stage::Verbs& verbs = in.nodes[in.stage_node[stage]].verbs;
  const bool joint = verbs.score_layer || verbs.score_all || verbs.allocates();
  return joint && acts_after(in.stages[stage]->when(), event);
}

/// Memory for the plans of so many heads at the same time, while this lives, in place of that for one layer.
class PlansOfLayers {
 public:
  PlansOfLayers(Inside& in, std::size_t heads) : in_(in), of_one_(heads) { of_one_.swap(in.work); }
  ~PlansOfLayers() { of_one_.swap(in_.work); }
  PlansOfLayers(const PlansOfLayers&) = delete;
  PlansOfLayers& operator=(const PlansOfLayers&) = delete;

 private:
  Inside& in_;
  std::vector<HeadWork> of_one_;
};

/// One stage on the heads [first, first + count): joint decisions, then each head's plan is made and carried out.
inline void act_stage(Inside& in, std::size_t stage, std::size_t first, std::size_t count, const Occasion& occasion,
                      bool cascades) {
  for (std::size_t layer = in.layer_of(first); layer < in.layer_of(first + count); ++layer) note_limits(in, layer);
  const bool joint = acts_jointly(in, stage, occasion.event);
  if (joint) decide_jointly(in, stage, first, count, occasion, cascades);
  const bool scored = joint && in.nodes[in.stage_node[stage]].verbs.scores();
  // When a prompt ends, a stage that has waited for the last layer takes the heads of several layers at a time: the threads of an
  // executor are seldom a divisor of the heads of one.
  constexpr std::size_t HeadsAtOnce = 32;
  std::size_t at_once = in.shape.kv_heads;
  std::optional<PlansOfLayers> plans;
  if (count > at_once && occasion.event == Event::prompt_end) {
    at_once = std::min(count, in.shape.kv_heads * divide_up(HeadsAtOnce, in.shape.kv_heads));
    plans.emplace(in, at_once);
    for (attention::HeadAttention& attention : in.attention) attention.window_tokens = 0;
  }
  for (std::size_t begin = first; begin < first + count; begin += at_once)
    occasion.executor->parallel_for(std::min(at_once, first + count - begin), [&](std::size_t i) {
      const std::size_t head = begin + i;
      const WorkspacePool::Lease workspace(*in.workspaces);
      const std::span<const float> scores =
          scored ? std::span<const float>(in.joint_scores[head]) : std::span<const float>();
      if (plan_head(in, stage, head, occasion, scores, *workspace)) carry_out(in, head, occasion.event, *workspace);
    });
}

/// Notes what truncate() must know, and lets go of the prompt's queries once the policies have acted on them.
inline void finish_layer(Inside& in, std::size_t layer, Event event) noexcept {
  LayerState& state = in.layers[layer];
  for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head) {
    if (in.memory[head].changed) state.changed_at = state.next_position;
    in.memory[head].changed = false;
  }
  if (event != Event::prompt_end) return;
  for (attention::HeadAttention& attention : in.attention) attention.window_tokens = 0;
  std::vector<float>().swap(state.window);
  state.references = {};
  state.window_tokens = state.prompt_tokens = 0;
  close_prompt(in, layer);
}

/// Lets go of the ramp where no head's positions are its numbers any more.
inline void release_ramp(Inside& in) noexcept {
  for (const HeadStore& store : in.heads)
    if (store.slots().positions().identity() && store.size() != 0) return;
  std::vector<Position>().swap(in.ramp);
}

/// Whether some stage waits for the last layer on this occasion.
inline bool waits(const Inside& in, Event event) {
  for (std::size_t stage = in.waits_from; stage < in.stages.size(); ++stage)
    if (in.nodes[in.stage_node[stage]].verbs.waits() && acts_after(in.stages[stage]->when(), event)) return true;
  return false;
}

/// All stages of a layer, after a pass over it. Everything that changes is saved in `transaction` before.
inline Finished act(Inside& in, std::size_t layer, const Occasion& occasion, Transaction& transaction) {
  if (occasion.event == Event::probe) return {};
  const std::size_t first = in.first_head(layer), heads = in.shape.kv_heads, stages = in.stages.size();
  if (!waits(in, occasion.event)) {
    transaction.before_act_on_layer(layer);
    slide_layer(in, layer, occasion);
    for (std::size_t stage = 0; stage < stages; ++stage) act_stage(in, stage, first, heads, occasion, false);
    if (!in.demands.merges) {
      seal_layer(in, layer, occasion);
      return {layer, 1};
    }
    return merge_and_seal(in, layer, occasion, transaction);
  }
  transaction.before_act_on_layer(layer);
  slide_layer(in, layer, occasion);
  for (std::size_t stage = 0; stage < in.waits_from; ++stage) act_stage(in, stage, first, heads, occasion, false);
  std::size_t next = in.waits_from;
  if (in.nodes[in.stage_node[next]].verbs.cascade) {
    for (std::size_t below = 0; below < layer; ++below) transaction.before_act_on_layer(below);
    act_stage(in, next, 0, first + heads, occasion, true);
    ++next;
  }
  if (layer + 1 != in.shape.layers) return {};
  for (std::size_t each = 0; each < in.shape.layers; ++each) transaction.before_act_on_layer(each);
  for (; next < stages; ++next) {
    const Stage::Verbs& verbs = in.nodes[in.stage_node[next]].verbs;
    if (verbs.waits())
      act_stage(in, next, 0, in.heads.size(), occasion, verbs.cascade);
    else
      for (std::size_t each = 0; each < in.shape.layers; ++each)
        act_stage(in, next, in.first_head(each), heads, occasion, false);
  }
  for (std::size_t each = 0; each < in.shape.layers; ++each) seal_layer(in, each, occasion);
  return {0, in.shape.layers};
}

}  // namespace kvc::inline KVC_ABI::cache
