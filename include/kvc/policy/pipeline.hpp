#pragma once
#include <algorithm>
#include <concepts>
#include <cstddef>
#include <memory>
#include <tuple>
#include <utility>

#include "kvc/policy/stage.hpp"

namespace kvc::inline KVC_ABI {

/// Something that holds a list of stages already: a Pipeline, an AnyPolicy.
template <class P>
concept HasStages = requires(const P policy) {
  { policy.stages() } -> std::same_as<Stages>;
};

/// What a KVCache takes and what operator| joins.
template <class P>
concept Composable = HasStages<P> || Policy<P>;

/// Refuses at compile time what types tell cannot work together; check_stages() refuses the rest at construction.
template <class... Policies>
constexpr bool check_pipeline() {
  constexpr int Quantizers = (int(Quantizes<Policies>) + ... + 0), Selectors = (int(Selects<Policies>) + ... + 0);
  constexpr bool Merges = (MergesLayers<Policies> || ...);
  static_assert(Quantizers <= 1, "two quantizers in one pipeline: rows can be sealed by one of them only");
  static_assert(Selectors <= 1, "two selectors in one pipeline: only one can say what a query reads");
  static_assert(!Merges || ((HasStages<Policies> || equal_slots<Policies> == EqualSlots::cache) && ...),
                "cross-layer merging needs stages that keep the same positions in every layer and head");
  return true;
}

/// The type-erased stages of a policy, in order: one for a plain policy, several for a Pipeline or an AnyPolicy.
template <Composable P>
Stages stages_of(const P& policy) {
  if constexpr (HasStages<P>)
    return policy.stages();
  else
    return {std::make_shared<const StageOf<P>>(policy)};
}

/// Policies that act one after the other on the same slots: `SnapKV{} | KIVI{}` first evicts, then quantizes what
/// stays.
template <class... Policies>
struct Pipeline {
  static_assert(check_pipeline<Policies...>());
  std::tuple<Policies...> policies;

  Stages stages() const {
    Stages all;
    std::apply(
        [&](const auto&... policy) {
          const auto append = [&](const Stages& some) { all.insert(all.end(), some.begin(), some.end()); };
          (append(stages_of(policy)), ...);
        },
        policies);
    return all;
  }
};

namespace detail {
template <class P>
std::tuple<P> as_tuple(P policy) {
  return {std::move(policy)};
}
template <class... Policies>
std::tuple<Policies...> as_tuple(Pipeline<Policies...> pipeline) {
  return std::move(pipeline.policies);
}
}  // namespace detail

/// First `a`, then `b`. Constrained to policies: an unconstrained operator| would capture other libraries' enums.
template <Composable A, Composable B>
auto operator|(A a, B b) {
  return std::apply([](auto... policy) { return Pipeline<decltype(policy)...>{{std::move(policy)...}}; },
                    std::tuple_cat(detail::as_tuple(std::move(a)), detail::as_tuple(std::move(b))));
}

namespace detail {
/// A stage that takes part in some layers only.
class StageOnLayers final : public Stage {
 public:
  StageOnLayers(std::shared_ptr<const Stage> stage, std::size_t first, std::size_t last)
      : stage_(std::move(stage)), first_(first), last_(last) {}

  bool works_on(std::size_t layer) const override {
    return layer >= first_ && layer <= last_ && stage_->works_on(layer);
  }
  void validate(const CacheShape& shape) const override {
    if (first_ > last_ || first_ >= shape.layers)
      fail(ErrorCode::invalid_argument,
           {"PerLayer: layers ", first_, " to ", last_, ": the model has layers 0 to ", shape.layers - 1});
    stage_->validate(shape);
  }
  std::shared_ptr<const Stage> with_budget(const Budget& budget) const override {
    auto changed = stage_->with_budget(budget);
    return changed ? std::make_shared<const StageOnLayers>(std::move(changed), first_, last_) : nullptr;
  }

  TypeName type() const override { return stage_->type(); }
  Verbs verbs() const override { return stage_->verbs(); }
  Needs needs() const override { return stage_->needs(); }
  When when() const override { return stage_->when(); }
  Positions positions() const override { return stage_->positions(); }
  EqualSlots keeps_equal_slots() const override {
    return stage_->verbs().evict ? std::min(stage_->keeps_equal_slots(), EqualSlots::layer) : EqualSlots::cache;
  }
  EqualSlots wants_equal_slots() const override { return stage_->wants_equal_slots(); }
  std::span<const Member> members() const override { return stage_->members(); }
  std::size_t slot_bytes() const override { return stage_->slot_bytes(); }
  void default_slot(std::byte* slot) const override { stage_->default_slot(slot); }
  std::unique_ptr<AnyState> new_state() const override { return stage_->new_state(); }
  void exchange_slots(std::byte* slots, std::size_t count, Fields& fields) const override {
    stage_->exchange_slots(slots, count, fields);
  }
  bool accepts(const AnyHead& head) const override { return stage_->accepts(head); }
  std::uint64_t fingerprint() const override {
    Fingerprint all;
    all.add(stage_->fingerprint());
    all.add(first_);
    all.add(last_);
    return all.value();
  }
  std::size_t budget(HeadId id, std::size_t seen, const CacheShape& shape) const override {
    return stage_->budget(id, seen, shape);
  }
  void observe(const AnyHead& head, const Observation& seen) const override { stage_->observe(head, seen); }
  void score(const AnyHead& head, std::span<float> scores) const override { stage_->score(head, scores); }
  void score_layer(std::span<const AnyHead> heads, ScoreSpans scores, Workspace& workspace) const override {
    stage_->score_layer(heads, scores, workspace);
  }
  void score_all(std::span<const AnyHead> heads, ScoreSpans scores, Workspace& workspace) const override {
    stage_->score_all(heads, scores, workspace);
  }
  void allocate(std::span<const AnyHead> heads, std::span<std::size_t> budgets, Workspace& workspace) const override {
    stage_->allocate(heads, budgets, workspace);
  }
  void cascade(std::span<const AnyHead> heads, std::span<std::size_t> budgets, Workspace& workspace) const override {
    stage_->cascade(heads, budgets, workspace);
  }
  void allocate_all(std::span<const AnyHead> heads, std::span<std::size_t> budgets,
                    Workspace& workspace) const override {
    stage_->allocate_all(heads, budgets, workspace);
  }
  void evict(const AnyHead& head, Plan& plan) const override { stage_->evict(head, plan); }
  bool pairs(std::size_t layer, const CacheShape& shape) const override {
    return layer != 0 && works_on(layer) && works_on(layer - 1) && stage_->pairs(layer, shape);
  }
  void merge(const AnyHead& below, const AnyHead& here, PairPlan& plan) const override {
    stage_->merge(below, here, plan);
  }
  Streams quantize(HeadId id, const CacheShape& shape) const override { return stage_->quantize(id, shape); }
  Streams fit(const AnyHead& head) const override { return stage_->fit(head); }
  void index(const AnyHead& head, std::size_t from) const override { stage_->index(head, from); }
  void select(const AnyHead& head, ConstRows queries, Selection& selection) const override {
    stage_->select(head, queries, selection);
  }

 private:
  std::shared_ptr<const Stage> stage_;
  std::size_t first_, last_;
};
}  // namespace detail

/// A policy, or a pipeline, for the layers `first` to `last` only: `PerLayer{Full{.bits = 8}, 0, 1} | PerLayer{KIVI{}, 2}`. Layers
/// that no stage works on keep every token in the cache's own type.
template <Composable P>
struct PerLayer {
  P policy;
  std::size_t first = 0, last = static_cast<std::size_t>(-1);

  Stages stages() const {
    Stages all = stages_of(policy);
    for (auto& stage : all) stage = std::make_shared<const detail::StageOnLayers>(std::move(stage), first, last);
    return all;
  }
};
template <Composable P>
PerLayer(P, std::size_t) -> PerLayer<P>;
template <Composable P>
PerLayer(P, std::size_t, std::size_t) -> PerLayer<P>;

namespace detail {
/// What the stages of one layer must be to each other.
inline void check_layer_stages(const Stages& stages, std::size_t layer) {
  int quantizers = 0, selectors = 0;
  EqualSlots equal = EqualSlots::cache;
  for (const auto& stage : stages) {
    if (!stage->works_on(layer)) continue;
    const Stage::Verbs verbs = stage->verbs();
    quantizers += verbs.quantize;
    selectors += verbs.select;
    const EqualSlots left = std::min(equal, stage->keeps_equal_slots());
    if (stage->wants_equal_slots() == EqualSlots::layer && left == EqualSlots::none)
      fail(ErrorCode::incompatible,
           {stage->type().text, " reads the heads of a layer slot by slot, but ",
            equal == EqualSlots::none ? "a stage before it" : "it", " leaves them different positions"});
    equal = left;
  }
  if (quantizers > 1)
    fail(ErrorCode::incompatible, "two quantizers in one pipeline: rows can be sealed by one of them only");
  if (selectors > 1)
    fail(ErrorCode::incompatible, "two selectors in one pipeline: only one can say what a query reads");
}
}  // namespace detail

/// Throws Error unless the stages can work together on a cache of this shape: the rules of check_pipeline() for
/// pipelines made at run time, then every policy's own validate().
[[gnu::cold]] inline void check_stages(const Stages& stages, const CacheShape& shape) {
  shape.validate();
  for (std::size_t layer = 0; layer < shape.layers; ++layer) detail::check_layer_stages(stages, layer);
  const auto merges = [](const auto& stage) { return stage->verbs().merge; };
  const auto uneven = [](const auto& stage) { return stage->keeps_equal_slots() != EqualSlots::cache; };
  if (std::any_of(stages.begin(), stages.end(), merges) && std::any_of(stages.begin(), stages.end(), uneven))
    fail(ErrorCode::incompatible,
         "cross-layer merging needs stages that keep the same positions in every layer and head");
  for (const auto& stage : stages) {
    stage->validate(shape);
    for (std::size_t layer = 1; merges(stage) && layer < shape.layers; ++layer)
      if (stage->works_on(layer) && stage->pairs(layer, shape) && shape.window(layer - 1) != shape.window(layer))
        fail(ErrorCode::incompatible,
             {stage->type().text, " would let layers ", layer - 1, " and ", layer,
              " share rows, but their windows differ: ", shape.window(layer - 1), " and ", shape.window(layer)});
  }
}

}  // namespace kvc::inline KVC_ABI
