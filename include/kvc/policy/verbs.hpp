#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "kvc/policy/head.hpp"
#include "kvc/policy/plan.hpp"
#include "kvc/stream.hpp"
#include "kvc/words.hpp"

namespace kvc::inline KVC_ABI {

/// Where tokens stand for the rotary embedding.
enum class Positions : std::uint8_t {
  original,  ///< at their index in the text
  in_cache,  ///< at their slot index (StreamingLLM, H2O's position rolling)
};
constexpr auto words_of(Positions) {
  return words(word("original", Positions::original), word("in_cache", Positions::in_cache));
}

// A policy is an aggregate of parameters with any of these members. The argument says the scope.
//
//   Needs needs() const                                                      what to feed observe()
//   void observe(Head<P>&, const Observation&) const                         writes only P::Slot and P::State
//   void score(const Head<P>&, std::span<float> scores) const                one per slot; higher stays
//   void allocate(Layer<P>, std::span<std::size_t> budgets) const            joint over the heads of a layer
//   void allocate_all(Cache<P>, std::span<std::size_t> budgets) const        joint over all layers, after the last one
//   void evict(Head<P>&, Plan&) const                                        default with score(): top budget at prompt_end
//   void merge(const Head<P>& below, const Head<P>& here, PairPlan&) const   with bool pairs(std::size_t layer, const CacheShape&) const
//   Streams quantize(HeadId) const                                           how keys and values are sealed
//   void index(Head<P>&, std::size_t from) const                             slots >= from are new, changed or gone
//   void select(const Head<P>&, ConstRows queries, Selection&) const         read-time; thread-safe; queries [group, head_dim]
//   void validate(const CacheShape&) const                                   throws Error if the parameters cannot work
//   Budget budget; Positions positions;                                      data members with a meaning of their own

template <class P>
concept HasNeeds = requires(const P policy) {
  { policy.needs() } -> std::same_as<Needs>;
};
template <class P>
concept Observes = requires(const P policy, Head<P>& head, const Observation& seen) {
  policy.observe(head, seen);
};
template <class P>
concept Scores = requires(const P policy, const Head<P>& head, std::span<float> scores) {
  policy.score(head, scores);
};
template <class P>
concept Allocates = requires(const P policy, Layer<P> heads, std::span<std::size_t> budgets) {
  policy.allocate(heads, budgets);
};
template <class P>
concept AllocatesAll = requires(const P policy, Cache<P> heads, std::span<std::size_t> budgets) {
  policy.allocate_all(heads, budgets);
};
template <class P>
concept Evicts = requires(const P policy, Head<P>& head, Plan& plan) {
  policy.evict(head, plan);
};
template <class P>
concept MergesLayers = requires(const P policy, const Head<P>& head, PairPlan& plan, const CacheShape& shape) {
  policy.merge(head, head, plan);
  { policy.pairs(std::size_t{}, shape) } -> std::same_as<bool>;
};
template <class P>
concept Quantizes = requires(const P policy) {
  { policy.quantize(HeadId{}) } -> std::same_as<Streams>;
};
template <class P>
concept Indexes = requires(const P policy, Head<P>& head) {
  policy.index(head, std::size_t{});
};
template <class P>
concept Selects = requires(const P policy, const Head<P>& head, ConstRows queries, Selection& selection) {
  policy.select(head, queries, selection);
};
template <class P>
concept Validates = requires(const P policy, const CacheShape& shape) {
  policy.validate(shape);
};

namespace detail {
// A verb with a wrong signature must not vanish silently, so "has a member of that name" is tested apart from the
// signature: inheriting the name twice makes it ambiguous exactly when P has it.
struct VerbNames {
  int needs, observe, score, allocate, allocate_all, evict, merge, quantize, index, select, validate;
};
template <class P>
struct BothNames : P, VerbNames {};

#define KVC_NAMED_VERB(verb)         \
  template <class P>                 \
  concept Named_##verb = !requires { \
    &BothNames<P>::verb;             \
  };
KVC_NAMED_VERB(needs)
KVC_NAMED_VERB(observe)
KVC_NAMED_VERB(score)
KVC_NAMED_VERB(allocate)
KVC_NAMED_VERB(allocate_all)
KVC_NAMED_VERB(evict)
KVC_NAMED_VERB(merge)
KVC_NAMED_VERB(quantize)
KVC_NAMED_VERB(index)
KVC_NAMED_VERB(select)
KVC_NAMED_VERB(validate)
#undef KVC_NAMED_VERB
/// Has a member called as a verb that makes a policy, whatever its signature.
template <class P>
concept NamesVerb = !std::is_final_v<P> && (Named_observe<P> || Named_score<P> || Named_evict<P> || Named_merge<P> ||
                                            Named_quantize<P> || Named_select<P>);
}  // namespace detail

/// Fails to compile, with the right signature in the message, if a verb of P is misspelt in its signature.
template <class P>
constexpr bool check_policy() {
  static_assert(std::copyable<P>, "a policy is a copyable value");
  static_assert(std::is_trivially_copyable_v<Slot<P>>, "P::Slot is copied bytewise with its key");
  static_assert(!detail::Named_needs<P> || HasNeeds<P>, "needs must be: Needs needs() const");
  static_assert(!detail::Named_observe<P> || Observes<P>,
                "observe must be: void observe(Head<P>&, const Observation&) const");
  static_assert(!detail::Named_score<P> || Scores<P>,
                "score must be: void score(const Head<P>&, std::span<float>) const");
  static_assert(!detail::Named_allocate<P> || Allocates<P>,
                "allocate must be: void allocate(Layer<P>, std::span<std::size_t>) const");
  static_assert(!detail::Named_allocate_all<P> || AllocatesAll<P>,
                "allocate_all must be: void allocate_all(Cache<P>, std::span<std::size_t>) const");
  static_assert(!detail::Named_evict<P> || Evicts<P>, "evict must be: void evict(Head<P>&, Plan&) const");
  static_assert(!detail::Named_merge<P> || MergesLayers<P>,
                "merge must be: void merge(const Head<P>&, const Head<P>&, PairPlan&) const, with bool "
                "pairs(std::size_t, const CacheShape&) const");
  static_assert(!detail::Named_quantize<P> || Quantizes<P>, "quantize must be: Streams quantize(HeadId) const");
  static_assert(!detail::Named_index<P> || Indexes<P>, "index must be: void index(Head<P>&, std::size_t) const");
  static_assert(!detail::Named_select<P> || Selects<P>,
                "select must be: void select(const Head<P>&, ConstRows, Selection&) const");
  static_assert(!detail::Named_validate<P> || Validates<P>, "validate must be: void validate(const CacheShape&) const");
  return true;
}

/// A stage that removes slots.
template <class P>
concept Shrinks = Evicts<P> || Scores<P>;
/// Whether all heads and layers keep the same positions; a shrinking policy whose choice does not look at the head
/// (StreamingLLM) says so with `static constexpr bool equal_slots = true`.
template <class P>
constexpr bool equal_slots = !Shrinks<P>;
template <class P>
requires requires {
  P::equal_slots;
}
constexpr bool equal_slots<P> = P::equal_slots;

/// Anything with at least one verb. One whose only verb has a wrong signature is let in, so that check_policy() can say
/// what is wrong with it.
template <class P>
concept Policy = std::is_class_v<P> &&
    (Observes<P> || Scores<P> || Evicts<P> || MergesLayers<P> || Quantizes<P> || Selects<P> || detail::NamesVerb<P>);

}  // namespace kvc
