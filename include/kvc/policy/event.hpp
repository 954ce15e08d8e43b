#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvc/shape.hpp"
#include "kvc/views.hpp"
#include "kvc/words.hpp"

namespace kvc::inline KVC_ABI {

/// What just happened to a head.
enum class Event : std::uint8_t {
  prompt_chunk,  ///< a part of a prompt was appended, and more follows
  prompt_end,    ///< the last part of a prompt was appended, or the engine called compress()
  decode,        ///< generated tokens were appended, usually one
  probe,         ///< queries were asked that leave no tokens behind
  make_room,     ///< the engine announced HeadView::incoming tokens (StreamingLLM's evict_for_space)
};

/// After which events a policy evicts. A policy says it by a member `when`, a parameter or a constant; without one it is
/// prompt_end.
enum class When : std::uint8_t {
  prompt_end,   ///< once a prompt is complete
  every_pass,   ///< once a prompt is complete, and after every generated token
  every_chunk,  ///< after every part of a prompt
  always,       ///< after every part of a prompt and after every generated token
  make_room,    ///< only when the engine announces tokens
};

constexpr auto words_of(When) {
  return words(word("prompt_end", When::prompt_end), word("every_pass", When::every_pass),
               word("every_chunk", When::every_chunk), word("always", When::always),
               word("make_room", When::make_room));
}

/// Whether a policy with this `when` evicts after that event.
constexpr bool acts_after(When when, Event event) {
  switch (event) {
    case Event::prompt_end:
      return when != When::make_room;
    case Event::prompt_chunk:
      return when == When::every_chunk || when == When::always;
    case Event::decode:
      return when == When::every_pass || when == When::always;
    case Event::make_room:
      return when == When::make_room;
    case Event::probe:
      return false;
  }
  return false;
}

/// How much of a pass's attention a policy wants to be told.
enum class Feed : std::uint8_t {
  none,
  group_sums,  ///< per slot, the sum over all queries of the pass and all query heads of the group
  sums,        ///< per slot and query head, the sum over all queries of the pass
  maxima,      ///< per slot and query head, the largest over all queries of the pass
  rows,        ///< every query's row of probabilities
};

/// What the core must feed a policy. What no policy asks for is not computed, and no policy sees what another one asked for.
struct Needs {
  Feed prompt = Feed::none, decode = Feed::none, probe = Feed::none;  ///< attention for observe(), by event
  std::size_t query_window = 0;  ///< the last so many queries of a prompt are kept until the policy has acted on it
  /// Every so-many-th query of a prompt, and of probes while it is open, is kept until the policy has acted on it
  /// (HeadView::reference_queries); 0: none. The policies of a cache share them: the smallest stride that one asks for
  /// and the largest limit hold for all, so a policy takes every so-many-th of what it finds, and not what it asked for.
  std::size_t query_stride = 0;
  /// The most tokens whose queries are kept so: where a prompt and its probes have more, the stride doubles. 0: no limit.
  std::size_t query_most = 0;
  bool queries = false;          ///< observe() sees the queries of every pass, as they came and without their rotation
  bool external_scores = false;  ///< the engine must pass Tokens::scores

  friend bool operator==(const Needs&, const Needs&) = default;
};

/// One pass (a part of a prompt, a decode step, a probe) as one head saw it.
struct Observation {
  Event event = Event::decode;
  std::size_t first_new = 0;             ///< slots [first_new, size) were appended by this pass
  std::size_t queries_count = 0;         ///< tokens of the pass
  ConstRows queries, unrotated_queries;  ///< [tokens * group, head_dim], if Needs::queries
  /// The attention after softmax, of the kind that this policy asked for: group_sums [1, slots], sums and maxima [group,
  /// slots], rows [tokens * group, slots]. It has no rows where the policy asked for none.
  ConstRows attention;
  std::span<const float> scores;            ///< external scores of the new tokens, if Needs::external_scores
  Position probe_begin = 0, probe_end = 0;  ///< positions that a probe asks about
};

/// Queries that the core kept, one row per token and query head of the group.
struct ReferenceQueries {
  ConstRows queries;                       ///< [tokens * group, head_dim], rotated to their positions
  std::span<const Position> positions;     ///< [tokens]
  std::span<const std::uint32_t> numbers;  ///< [tokens]: which tokens of the prompt and its probes they were, from 0
};

}  // namespace kvc::inline KVC_ABI
