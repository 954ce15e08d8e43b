#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/named/any_policy.hpp"
#include "support/naive_policies.hpp"

/// The one list of all policies and their variants. Every test of tests/invariants goes through all of it, so a new policy
/// is tested by one more entry in all_policies.cpp. What a
/// stage can be asked (verbs, budgets, needs) is not said again here.
namespace support {

/// What every policy promises, unless its entry says why not.
enum class Invariant {
  budget,         ///< after it acted a head holds its budget, not a slot more or less
  room,           ///< with a budget for every token, bitwise the full cache
  protection,     ///< protected slots stay
  chunks,         ///< a prompt in parts is bitwise the prompt whole
  fork,           ///< forks and parents go their own ways
  heads,          ///< permuted KV heads permute the result
  ties,           ///< of equal scores the older token stays
  nan_scores,     ///< a NaN score loses
  groups,         ///< 1, 3, 4 and 8 query heads per KV head, against the naive cache
  short_prompts,  ///< no token, one, fewer than any window, against the naive cache
  walk,           ///< a thousand random steps, against the naive cache
  statistics,     ///< they add up and stay below the dense cache
  allocations,    ///< none while decoding after reserve()
};
inline constexpr std::size_t InvariantCount = 13;

/// When a policy evicts.
enum class Acts { never, prompt_end, every_pass };

struct Exemption {
  Invariant invariant;
  std::string why;
};

/// A policy with parameters that bite on prompts of 100 tokens in small_shape().
struct PolicyCase {
  std::string text;
  Acts acts = Acts::never;
  std::string roomy = {};           ///< the same policy with room for a thousand tokens
  std::size_t slots = 0;            ///< what a head holds, where its stages cannot be asked
  std::size_t first = 0, last = 0;  ///< slots it protects: the oldest, the newest when it acts
  naive::Keep keep = nullptr;       ///< its choice; none: the naive cache evicts what the library evicted
  naive::Cache::Select select = nullptr;
  naive::Cache::Farewell farewell = nullptr;
  std::size_t state_bytes = 0, state_bytes_per_token = 0;  ///< of its State, at most, per head
  bool compresses = true;                                  ///< it can act without a prompt's queries
  std::vector<Exemption> exempt = {};

  const Exemption* exemption(Invariant invariant) const;
  kvc::AnyPolicy policy() const { return kvc::AnyPolicy::parse(text); }
  /// Whether it lets adjacent layers share rows.
  bool merges() const;
  /// Whether it asks what the last queries of a prompt attend to.
  bool reads_window() const;
};

/// What the entries' parameters are meant for: small, so that the naive cache is fast, with what every policy needs.
kvc::CacheShape small_shape(std::size_t group = 2);
/// The same with a window in each of its two layers, 0 for none, and sink logits in the second.
kvc::CacheShape windowed_shape(kvc::Position first, kvc::Position second);

/// The list, made once.
const std::vector<PolicyCase>& all_policies();

}  // namespace support
