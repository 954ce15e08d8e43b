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

class Member;

// A policy is an aggregate of parameters with any of these members. The argument says the scope.
//
//   Budget budget; Positions positions; When when;                           data members with a meaning of their own
//   Needs needs() const                                                      what the core feeds observe()
//   std::span<const Member> members() const                                  policies inside this one
//   void observe(Head<P>&, const Observation&) const                         writes only P::Slot, P::State and P::PromptState
//   void score(const Head<P>&, std::span<float> scores) const                one number per slot, of which there is one at least; the higher stay
//   void score_layer(Layer<P>, ScoreSpans scores) const                      the same, jointly over the heads of a layer
//   void score_all(Cache<P>, ScoreSpans scores) const                        the same, jointly over all layers, after the last one
//   void allocate(Layer<P>, std::span<std::size_t> budgets) const            budgets, jointly over the heads of a layer
//   void cascade(Cache<P>, std::span<std::size_t> budgets) const             the same over the layers 0 to l, each time a layer l ends
//   void allocate_all(Cache<P>, std::span<std::size_t> budgets) const        the same over all layers, after the last one
//   void evict(Head<P>&, Plan&) const                                        default with scores: the best `budget` slots stay
//   void merge(const Head<P>& below, const Head<P>& here, PairPlan&) const   with bool pairs(std::size_t layer, const CacheShape&) const
//   Streams quantize(HeadId, const CacheShape&) const                        how keys and values are sealed
//   Streams fit(const Head<P>&) const                                        the same once more, before a head seals for the first time
//   void index(Head<P>&, std::size_t from) const                             slots from `from` on are new, gone, or read otherwise, by a seal too
//   void select(const Head<P>&, ConstRows queries, Selection&) const         at read time, thread-safe; queries [group, head_dim]
//   void validate(const CacheShape&) const                                   throws Error if the parameters cannot work
//   bool accepts(const Head<P>&) const                                       whether Slots and State that came from a file can be

template <class P>
concept HasNeeds = requires(const P policy) {
  { policy.needs() } -> std::same_as<Needs>;
};
template <class P>
concept HasMembers = requires(const P policy) {
  { policy.members() } -> std::same_as<std::span<const Member>>;
};
template <class P>
concept Observes = requires(const P policy, Head<P>& head, const Observation& seen) {
  policy.observe(head, seen);
};
template <class P>
concept ScoresHead = requires(const P policy, const Head<P>& head, std::span<float> scores) {
  policy.score(head, scores);
};
template <class P>
concept ScoresLayer = requires(const P policy, Layer<P> heads, ScoreSpans scores) {
  policy.score_layer(heads, scores);
};
template <class P>
concept ScoresAll = requires(const P policy, Cache<P> heads, ScoreSpans scores) {
  policy.score_all(heads, scores);
};
template <class P>
concept Scores = ScoresHead<P> || ScoresLayer<P> || ScoresAll<P>;
template <class P>
concept Allocates = requires(const P policy, Layer<P> heads, std::span<std::size_t> budgets) {
  policy.allocate(heads, budgets);
};
template <class P>
concept Cascades = requires(const P policy, Cache<P> heads, std::span<std::size_t> budgets) {
  policy.cascade(heads, budgets);
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
concept Quantizes = requires(const P policy, const CacheShape& shape) {
  { policy.quantize(HeadId{}, shape) } -> std::same_as<Streams>;
};
template <class P>
concept Fits = requires(const P policy, const Head<P>& head) {
  { policy.fit(head) } -> std::same_as<Streams>;
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

template <class P>
concept Accepts = requires(const P policy, const Head<P>& head) {
  { policy.accepts(head) } -> std::same_as<bool>;
};

namespace detail {
// A verb with a wrong signature must not vanish silently, so "has a function of that name" is tested apart from the
// signature: inheriting the name twice makes it ambiguous exactly when P has it. A data member of that name is no verb. A
// policy that is final cannot be inherited from; there only a function that is not overloaded is found.
struct VerbNames {
  int needs, members, observe, score, score_layer, score_all, allocate, cascade, allocate_all, evict, merge, quantize,
      fit, index, select, validate, accepts;
};
template <class P>
struct BothNames : P, VerbNames {};
template <class P>
using NameHost = std::conditional_t<std::is_final_v<P>, std::type_identity<void>, std::type_identity<BothNames<P>>>;

// clang-format off: version 14 tears requirements apart.
#define KVC_NAMED_VERB(verb)                                                                        \
  template <class P>                                                                                \
  concept Holds_##verb = requires { requires std::is_member_object_pointer_v<decltype(&P::verb)>; }; \
  template <class P>                                                                                \
  concept Named_##verb = !Holds_##verb<P> &&                                                        \
                         ((std::is_final_v<P> && requires { &P::verb; }) ||                         \
                          (!std::is_final_v<P> && !requires { &NameHost<P>::type::verb; }));
// clang-format on
KVC_NAMED_VERB(needs)
KVC_NAMED_VERB(members)
KVC_NAMED_VERB(observe)
KVC_NAMED_VERB(score)
KVC_NAMED_VERB(score_layer)
KVC_NAMED_VERB(score_all)
KVC_NAMED_VERB(allocate)
KVC_NAMED_VERB(cascade)
KVC_NAMED_VERB(allocate_all)
KVC_NAMED_VERB(evict)
KVC_NAMED_VERB(merge)
KVC_NAMED_VERB(quantize)
KVC_NAMED_VERB(fit)
KVC_NAMED_VERB(index)
KVC_NAMED_VERB(select)
KVC_NAMED_VERB(validate)
KVC_NAMED_VERB(accepts)
#undef KVC_NAMED_VERB
/// A public function whose name is nearly a verb's.
// clang-format off
#define KVC_MISTAKEN_VERB(name)                                                                         \
  template <class P>                                                                                    \
  concept Mistakes_##name =                                                                             \
      requires { &P::name; } && !requires { requires std::is_member_object_pointer_v<decltype(&P::name)>; };
// clang-format on
KVC_MISTAKEN_VERB(scores)
KVC_MISTAKEN_VERB(observes)
KVC_MISTAKEN_VERB(evicts)
KVC_MISTAKEN_VERB(quantise)
KVC_MISTAKEN_VERB(quantizes)
KVC_MISTAKEN_VERB(selects)
KVC_MISTAKEN_VERB(merges)
KVC_MISTAKEN_VERB(allocates)
#undef KVC_MISTAKEN_VERB
/// Has a function called as a verb that makes a policy, whatever its signature.
template <class P>
concept NamesVerb = Named_observe<P> || Named_score<P> || Named_score_layer<P> || Named_score_all<P> ||
    Named_evict<P> || Named_merge<P> || Named_quantize<P> || Named_select<P>;
}  // namespace detail

/// Fails to compile, with the right signature in the message, if a verb of P is misspelt.
template <class P>
constexpr bool check_policy() {
  static_assert(std::copyable<P>, "a policy is a copyable value");
  static_assert(std::is_trivially_copyable_v<Slot<P>>, "P::Slot is copied bytewise with its key");
  static_assert(alignof(Slot<P>) <= 64, "P::Slot may be aligned to 64 bytes at most");
  static_assert(!detail::Named_needs<P> || HasNeeds<P>, "needs must be: Needs needs() const");
  static_assert(!detail::Named_members<P> || HasMembers<P>, "members must be: std::span<const Member> members() const");
  static_assert(!detail::Named_observe<P> || Observes<P>,
                "observe must be: void observe(Head<P>&, const Observation&) const");
  static_assert(!detail::Named_score<P> || ScoresHead<P>,
                "score must be: void score(const Head<P>&, std::span<float>) const");
  static_assert(!detail::Named_score_layer<P> || ScoresLayer<P>,
                "score_layer must be: void score_layer(Layer<P>, ScoreSpans) const");
  static_assert(!detail::Named_score_all<P> || ScoresAll<P>,
                "score_all must be: void score_all(Cache<P>, ScoreSpans) const");
  static_assert(!detail::Named_allocate<P> || Allocates<P>,
                "allocate must be: void allocate(Layer<P>, std::span<std::size_t>) const");
  static_assert(!detail::Named_cascade<P> || Cascades<P>,
                "cascade must be: void cascade(Cache<P>, std::span<std::size_t>) const");
  static_assert(!detail::Named_allocate_all<P> || AllocatesAll<P>,
                "allocate_all must be: void allocate_all(Cache<P>, std::span<std::size_t>) const");
  static_assert(!detail::Named_evict<P> || Evicts<P>, "evict must be: void evict(Head<P>&, Plan&) const");
  static_assert(!detail::Named_merge<P> || MergesLayers<P>,
                "merge must be: void merge(const Head<P>&, const Head<P>&, PairPlan&) const, with bool "
                "pairs(std::size_t, const CacheShape&) const");
  static_assert(!detail::Named_quantize<P> || Quantizes<P>,
                "quantize must be: Streams quantize(HeadId, const CacheShape&) const");
  static_assert(!detail::Named_fit<P> || (Fits<P> && Quantizes<P>),
                "fit must be: Streams fit(const Head<P>&) const, beside quantize, which says what holds before");
  static_assert(!detail::Named_index<P> || Indexes<P>, "index must be: void index(Head<P>&, std::size_t) const");
  static_assert(!detail::Named_select<P> || Selects<P>,
                "select must be: void select(const Head<P>&, ConstRows, Selection&) const");
  static_assert(!detail::Named_validate<P> || Validates<P>, "validate must be: void validate(const CacheShape&) const");
  static_assert(!detail::Named_accepts<P> || Accepts<P>, "accepts must be: bool accepts(const Head<P>&) const");
  static_assert(ScoresHead<P> + ScoresLayer<P> + ScoresAll<P> <= 1,
                "a policy scores by one of score, score_layer and score_all");
  static_assert(!detail::Mistakes_scores<P>, "scores is no verb; did you mean score?");
  static_assert(!detail::Mistakes_observes<P>, "observes is no verb; did you mean observe?");
  static_assert(!detail::Mistakes_evicts<P>, "evicts is no verb; did you mean evict?");
  static_assert(!detail::Mistakes_quantise<P> && !detail::Mistakes_quantizes<P>, "did you mean the verb quantize?");
  static_assert(!detail::Mistakes_selects<P>, "selects is no verb; did you mean select?");
  static_assert(!detail::Mistakes_merges<P>, "merges is no verb; did you mean merge?");
  static_assert(!detail::Mistakes_allocates<P>, "allocates is no verb; did you mean allocate?");
  return true;
}

/// A stage that removes slots.
template <class P>
concept Shrinks = Evicts<P> || Scores<P>;

/// Which heads keep the same positions under a policy. A policy that shrinks keeps its own in every head, unless it says
/// otherwise by `static constexpr EqualSlots equal_slots`.
enum class EqualSlots : std::uint8_t {
  none,   ///< every head chooses for itself
  layer,  ///< the heads of a layer keep the same positions (TOVA)
  cache,  ///< all heads of all layers do (StreamingLLM)
};
template <class P>
constexpr EqualSlots equal_slots = Shrinks<P> ? EqualSlots::none : EqualSlots::cache;
template <class P>
requires requires {
  { P::equal_slots } -> std::convertible_to<EqualSlots>;
}
constexpr EqualSlots equal_slots<P> = P::equal_slots;

/// What a policy that reads several heads together needs of the stages before it: by default nothing, for cross-layer merging
/// the same positions everywhere. `static constexpr EqualSlots needs_equal_slots` says more.
template <class P>
constexpr EqualSlots needs_equal_slots = MergesLayers<P> ? EqualSlots::cache : EqualSlots::none;
template <class P>
requires requires {
  { P::needs_equal_slots } -> std::convertible_to<EqualSlots>;
}
constexpr EqualSlots needs_equal_slots<P> = P::needs_equal_slots;

/// Anything with at least one verb that makes a policy. One whose only verb has a wrong signature is let in, so that
/// check_policy() can say what is wrong with it.
template <class P>
concept Policy = std::is_class_v<P> &&
    (Observes<P> || Scores<P> || Evicts<P> || MergesLayers<P> || Quantizes<P> || Selects<P> || detail::NamesVerb<P>);

}  // namespace kvc::inline KVC_ABI
