#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvc/shape.hpp"
#include "kvc/views.hpp"

namespace kvc::inline KVC_ABI {

/// What just happened to a head.
enum class Event : std::uint8_t {
  prompt_chunk,  ///< part of a prompt was appended; more follows
  prompt_end,    ///< the last part of a prompt was appended, or compress() was called
  decode,        ///< a generated token was appended
  probe,         ///< queries were asked that leave no tokens behind
  make_room,     ///< the engine announces HeadView::incoming tokens (StreamingLLM's evict_for_space)
};

/// How much of the attention a policy wants to be told.
enum class Feed : std::uint8_t {
  none,
  group_sums,  ///< one column sum per pass, over all queries of the group
  sums,        ///< one column sum per query head and pass
  rows,        ///< every query's row of probabilities
};

/// What the core must feed a policy; what nobody asks for is not computed.
struct Needs {
  Feed prompt = Feed::none, decode = Feed::none, probe = Feed::none;  ///< attention for observe(), by event
  std::size_t query_window = 0;  ///< the last this many queries, kept by the core until prompt_end
  bool queries = false;          ///< every pass's queries, rotated and un-rotated
  bool external_scores = false;  ///< the engine must pass Tokens::scores
};

/// One pass (prompt chunk, decode step, probe) as one head saw it.
struct Observation {
  Event event = Event::decode;
  std::size_t first_new = 0;             ///< slots [first_new, size) were appended by this pass
  std::size_t queries_count = 0;         ///< tokens of the pass
  ConstRows queries, unrotated_queries;  ///< [tokens * group, head_dim]
  /// After softmax: group_sums [1, slots], sums [group, slots] or rows [tokens * group, slots]. Where stages of a pipeline
  /// ask for different feeds, the largest is shown to all of them.
  ConstRows attention;
  std::span<const float> scores;            ///< external scores of the new tokens
  Position probe_begin = 0, probe_end = 0;  ///< positions that a probe asks about
};

/// The core's side of a HeadView: computes on first call, caches for the event.
class HeadSource {
 public:
  virtual ~HeadSource() = default;
  virtual ConstRows keys() = 0;
  /// Keys of slots [first, size) only.
  virtual ConstRows keys_from(std::size_t first) {
    const ConstRows all = keys();
    return all.subrows(first, all.count - first);
  }
  virtual ConstRows values() = 0;
  /// Key and value of one slot, without decoding any other.
  virtual void read_slot(std::size_t slot, std::span<float> key, std::span<float> value) {
    std::ranges::copy(keys()[slot], key.begin());
    std::ranges::copy(values()[slot], value.begin());
  }
  /// Values of slots [first, size) only.
  virtual ConstRows values_from(std::size_t first) {
    const ConstRows all = values();
    return all.subrows(first, all.count - first);
  }
  virtual ConstRows unrotated_keys() = 0;
  virtual ConstRows window_attention(std::size_t window) = 0;
  virtual ConstRows window_sums(std::size_t window) = 0;
  virtual ConstRows window_logits(std::size_t window) = 0;
};

/// What a policy sees of one head: its live slots in ascending position, whatever the storage looks like.
class HeadView {
 public:
  HeadId id;
  Event event = Event::decode;
  std::size_t budget = 0;    ///< slots this head may hold: from allocate(), else from the policy's Budget
  std::size_t seen = 0;      ///< tokens ever appended
  std::size_t incoming = 0;  ///< with Event::make_room: tokens about to come
  const CacheShape* shape = nullptr;
  std::span<const Position> positions;
  std::span<const float> multiplicity;  ///< tokens that a slot stands for; empty: all 1
  HeadSource* source = nullptr;

  std::size_t size() const { return positions.size(); }
  std::size_t group() const { return shape->group(); }
  ConstRows keys() const { return source->keys(); }  ///< [slots, head_dim], as stored (decoded)
  ConstRows keys_from(std::size_t first) const { return source->keys_from(first); }  ///< of slots [first, size)
  ConstRows values() const { return source->values(); }                              ///< [slots, value_dim]
  /// The key [head_dim] and value [value_dim] of one slot, for policies that need a few of many.
  void read_slot(std::size_t slot, std::span<float> key, std::span<float> value) const {
    source->read_slot(slot, key, value);
  }
  ConstRows values_from(std::size_t first) const { return source->values_from(first); }
  ConstRows unrotated_keys() const { return source->unrotated_keys(); }
  /// Attention of the last `window` queries over all slots: softmax over every slot the query sees, 0 beyond.
  /// [queries * group, slots], query-major; fewer than `window` queries if fewer are kept (Needs::query_window).
  ConstRows window_attention(std::size_t window) const { return source->window_attention(window); }
  /// Its sums over the queries, without their rows: [group, slots], or [0, slots] if no query is kept.
  ConstRows window_sums(std::size_t window) const { return source->window_sums(window); }
  /// Attention before the softmax, as window_attention; -inf beyond what the query sees.
  ConstRows window_logits(std::size_t window) const { return source->window_logits(window); }
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
}  // namespace detail

/// A policy's memory per slot, trivially copyable: moved, forked and dropped with its key.
template <class P>
using Slot = typename detail::SlotOf<P>::type;
/// A policy's memory per head.
template <class P>
using State = typename detail::StateOf<P>::type;

/// A head together with the memory that policy P keeps about it.
template <class P>
struct Head : HeadView {
  std::span<Slot<P>> slots;
  State<P>* state = nullptr;
};
template <class P>
using Layer = std::span<Head<P>>;  ///< the heads of one layer
template <class P>
using Cache = std::span<Head<P>>;  ///< all heads, layer-major

/// The same head for a decorator's base policy that shares the decorator's memory (the same Slot and State).
template <class Base, class P>
Head<Base> as(const Head<P>& head) {
  Head<Base> base;
  static_cast<HeadView&>(base) = head;
  base.slots = head.slots;
  base.state = head.state;
  return base;
}

}  // namespace kvc
