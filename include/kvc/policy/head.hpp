#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "kvc/policy/event.hpp"

namespace kvc::inline KVC_ABI {

class Stage;
struct AnyHead;
/// Where a joint verb writes its scores: one span [slots] per head.
using ScoreSpans = std::span<const std::span<float>>;

/// The core's side of a HeadView: it computes what a policy asks for at the first call and keeps it for the event.
class HeadSource {
 public:
  virtual ~HeadSource() = default;
  /// Keys, or values, of the slots [first, size).
  virtual ConstRows keys_from(std::size_t first) = 0;
  virtual ConstRows values_from(std::size_t first) = 0;
  /// Key and value of one slot, without decoding any other. An empty span leaves that side alone.
  virtual void read_slot(std::size_t slot, std::span<float> key, std::span<float> value) = 0;
  virtual ConstRows unrotated_keys() = 0;
  virtual ConstRows products(ConstRows rows) = 0;
  virtual ConstRows window_queries(std::size_t window) = 0;
  virtual ConstRows window_attention(std::size_t window) = 0;
  virtual ConstRows window_sums(std::size_t window) = 0;
  virtual ConstRows window_logits(std::size_t window) = 0;
  virtual ReferenceQueries reference_queries() = 0;
  /// Lets a member score heads one by one, those that hold anything. The core does it on several threads, each head with a
  /// source of its own.
  inline virtual void score_heads(const Stage& member, std::span<const AnyHead> heads, ScoreSpans scores);
};

/// What a policy sees of one head: its live slots in ascending position, whatever the storage looks like.
class HeadView {
 public:
  HeadId id;
  Event event = Event::decode;
  bool acts = false;         ///< whether the policy's `when` says that it evicts after this event
  std::size_t budget = 0;    ///< slots this head may hold: from a verb that allocates, else from the policy's Budget
  std::size_t seen = 0;      ///< tokens ever appended
  std::size_t incoming = 0;  ///< with Event::make_room: tokens about to come
  const CacheShape* shape = nullptr;
  std::span<const Position> positions;
  std::span<const float> multiplicity;  ///< tokens that a slot stands for; empty: every slot stands for one
  /// What the policy's own score verb said about the slots, for its verbs that allocate and evict. Empty where it has no
  /// such verb or was not asked, because it does not act after this event.
  std::span<const float> scores;
  /// The largest magnitudes that a plan may write into a key, or a value: what the formats of the layer hold.
  float key_limit = std::numeric_limits<float>::max(), value_limit = std::numeric_limits<float>::max();
  HeadSource* source = nullptr;

  std::size_t size() const { return positions.size(); }
  std::size_t group() const { return shape->group(); }
  /// Keys [slots, head_dim] as stored, decoded.
  ConstRows keys() const { return source->keys_from(0); }
  ConstRows keys_from(std::size_t first) const { return source->keys_from(first); }  ///< of the slots [first, size)
  /// Values [slots, value_dim] as stored, decoded.
  ConstRows values() const { return source->values_from(0); }
  ConstRows values_from(std::size_t first) const { return source->values_from(first); }
  /// The key [head_dim] and value [value_dim] of one slot, for policies that need a few of many. An empty span leaves
  /// that side alone.
  void read_slot(std::size_t slot, std::span<float> key, std::span<float> value) const {
    source->read_slot(slot, key, value);
  }
  /// Keys [slots, head_dim] without their rotation. Throws Error(missing_feed) if CacheShape::rotary is empty.
  ConstRows unrotated_keys() const { return source->unrotated_keys(); }
  /// The plain products of `rows` [count, head_dim] with every stored key: [count, slots], without scale or cap. The kernels
  /// compute them out of the stored form; nothing is decoded. Valid until the next call.
  ConstRows products(ConstRows rows) const { return source->products(rows); }
  /// The last `window` queries of the prompt [queries * group, head_dim], as they came, query-major. They are fewer where
  /// fewer are kept (Needs::query_window).
  ConstRows window_queries(std::size_t window) const { return source->window_queries(window); }
  /// Attention of the last `window` queries over all slots: softmax over every slot the query sees, 0 beyond.
  /// [queries * group, slots], query-major.
  ConstRows window_attention(std::size_t window) const { return source->window_attention(window); }
  /// Its sums over the queries, without their rows: [group, slots], or [0, slots] if no query is kept.
  ConstRows window_sums(std::size_t window) const { return source->window_sums(window); }
  /// Attention before the softmax, as window_attention; -inf beyond what the query sees.
  ConstRows window_logits(std::size_t window) const { return source->window_logits(window); }
  /// The queries that Needs::query_stride kept of the prompt, and of probes behind it, oldest first.
  ReferenceQueries reference_queries() const { return source->reference_queries(); }
};

/// The memory of a policy that keeps none.
struct Nothing {};

namespace detail {
template <class P>
struct SlotOf {
  using type = Nothing;
};
template <class P>
requires requires {
  typename P::Slot;
}
struct SlotOf<P> {
  using type = typename P::Slot;
};
template <class P>
struct StateOf {
  using type = Nothing;
};
template <class P>
requires requires {
  typename P::State;
}
struct StateOf<P> {
  using type = typename P::State;
};
template <class P>
struct PromptStateOf {
  using type = Nothing;
};
template <class P>
requires requires {
  typename P::PromptState;
}
struct PromptStateOf<P> {
  using type = typename P::PromptState;
};
}  // namespace detail

/// A policy's memory per slot, trivially copyable: moved, forked and dropped with its key.
template <class P>
using Slot = typename detail::SlotOf<P>::type;
/// A policy's memory per head.
template <class P>
using State = typename detail::StateOf<P>::type;
/// A policy's memory per head while a prompt is open: it begins empty, and the core drops it once the policy has acted at the
/// prompt's end.
template <class P>
using PromptState = typename detail::PromptStateOf<P>::type;

class AnyState;

/// Where one stage's memory about one head lies.
struct StageMemory {
  std::byte* slots = nullptr;  ///< [slots] elements of the policy's Slot
  AnyState* state = nullptr;
};

/// A head together with the memory of a stage and of the stage's members, type erased. The members' memory follows the
/// stage's own: members in order, each with its own members behind it.
struct AnyHead {
  HeadView view;
  const StageMemory* memory = nullptr;
};

/// A head together with the memory that policy P keeps about it.
template <class P>
struct Head : HeadView {
  std::span<Slot<P>> slots;
  State<P>* state = nullptr;
  PromptState<P>* prompt = nullptr;  ///< null unless a prompt is open or ends now

  /// The same head as member `index` of this policy sees it, with that member's memory (see Member).
  AnyHead member(std::size_t index) const { return {*this, memory + member_places[index]}; }

  const StageMemory* memory = nullptr;         ///< for member()
  const std::size_t* member_places = nullptr;  ///< for member()
};
template <class P>
using Layer = std::span<Head<P>>;  ///< the heads of one layer
template <class P>
using Cache = std::span<Head<P>>;  ///< the heads of several layers, layer-major

}  // namespace kvc::inline KVC_ABI
