#pragma once
#include <concepts>
#include <memory>
#include <string>
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
  static_assert(!Merges || ((HasStages<Policies> || equal_slots<Policies>)&&...),
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

/// Throws Error unless the stages can work together on a cache of this shape: the rules of check_pipeline() for
/// pipelines made at run time, then every policy's own validate().
inline void check_stages(const Stages& stages, const CacheShape& shape) {
  shape.validate();
  int quantizers = 0, selectors = 0;
  bool merges = false, equal = true;
  for (const auto& stage : stages) {
    const Stage::Verbs verbs = stage->verbs();
    quantizers += verbs.quantize;
    selectors += verbs.select;
    merges = merges || verbs.merge;
    equal = equal && stage->keeps_equal_slots();
  }
  if (quantizers > 1)
    fail(ErrorCode::incompatible, "two quantizers in one pipeline: rows can be sealed by one of them only");
  if (selectors > 1)
    fail(ErrorCode::incompatible, "two selectors in one pipeline: only one can say what a query reads");
  if (merges && !equal)
    fail(ErrorCode::incompatible,
         "cross-layer merging needs stages that keep the same positions in every layer and head");
  for (const auto& stage : stages) stage->validate(shape);
}

}  // namespace kvc
