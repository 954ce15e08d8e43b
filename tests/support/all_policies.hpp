#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/named/any_policy.hpp"
#include "support/naive_policies.hpp"

/// The one list of all policies and their variants. Every test of tests/invariants goes through all of it, so a new policy
/// is tested by one more entry below. What a stage can be
/// asked (verbs, budgets, needs) is not said again here.
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

  const Exemption* exemption(Invariant invariant) const {
    for (const Exemption& exemption : exempt)
      if (exemption.invariant == invariant) return &exemption;
    return nullptr;
  }
  kvc::AnyPolicy policy() const { return kvc::AnyPolicy::parse(text); }
};

/// What the entries' parameters are meant for: small, so that the naive cache is fast, with what every policy needs.
inline kvc::CacheShape small_shape(std::size_t group = 2) {
  return {.layers = 2, .query_heads = 2 * group, .kv_heads = 2, .head_dim = 16, .rotary = kvc::Rotary::standard(16)};
}

inline std::vector<PolicyCase> make_policies() {
  using enum Invariant;
  const Exemption no_budget{budget, "it evicts nothing"}, no_ties{ties, "it ranks no slots"},
      no_nan{nan_scores, "its scores are computed from finite rows"}, no_scores{nan_scores, "it has no scores"},
      no_slots{protection, "it protects no slots"},
      always_seals{room, "it quantizes whatever comes; there is no budget to widen"},
      sums_of_passes{chunks, "a maximum over sums of passes depends on the passes, as Reduce::max of H2O says"},
      evicts_in_prompts{chunks, "it evicts between chunks, by the meaning of the parameter"},
      merges{allocations, "every 64 tokens two layers get new blocks of shared directions"},
      one_by_one{allocations, "a list in its State doubles now and then"};
  const std::vector<Exemption> keeps_all{no_budget, no_slots, no_ties, no_scores},
      seals_all{no_budget, no_slots, no_ties, no_scores, always_seals}, streams{no_ties, no_scores}, ranks{no_nan},
      ranks_freely{no_nan, no_slots};
  const std::string sealing = " | kivi:bits=4,group=16,residual=32,metadata=f32",
                    wide_sealing = " | kivi:bits=4,group=16,residual=1024,metadata=f32";

  const auto with = [](std::vector<Exemption> some, std::initializer_list<Exemption> more) {
    some.insert(some.end(), more);
    return some;
  };
  return {
      {.text = "full", .roomy = "full:type=f16", .exempt = keeps_all},
      {.text = "full:type=f32", .exempt = seals_all},
      {.text = "full:type=bf16", .exempt = seals_all},
      {.text = "full:bits=8,group=16", .exempt = seals_all},
      {.text = "full:bits=4,group=16", .exempt = seals_all},
      {.text = "full:bits=2,group=16", .exempt = seals_all},

      {.text = "streaming_llm:budget=30",
       .acts = Acts::every_pass,
       .roomy = "streaming_llm:budget=1000",
       .first = 4,
       .last = 26,
       .keep = naive::streaming(30),
       .exempt = streams},
      {.text = "streaming_llm:keep=0.3,sinks=2",
       .acts = Acts::every_pass,
       .roomy = "streaming_llm:keep=1,sinks=2",
       .first = 2,
       .last = 20,
       .exempt = streams},
      {.text = "streaming_llm:budget=30,positions=in_cache",
       .acts = Acts::every_pass,
       .roomy = "streaming_llm:budget=1000,positions=in_cache",
       .first = 4,
       .last = 26,
       .keep = naive::streaming(30),
       .exempt = streams},
      {.text = "streaming_llm:budget=30,when=make_room",
       .roomy = "streaming_llm:budget=1000,when=make_room",
       .exempt = with(streams, {{budget, "it acts only when tokens are announced"}, no_slots})},

      {.text = "h2o:budget=30",
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000",
       .last = 15,
       .keep = naive::heavy_hitters(30),
       .exempt = ranks},
      {.text = "h2o:budget=30,recent=8,normalize",
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000,recent=8,normalize",
       .last = 8,
       .exempt = with(ranks, {{ties, "a token seen by more queries has another mean"}})},
      {.text = "h2o:budget=30,reduce=max",
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000,reduce=max",
       .last = 15,
       .exempt = with(ranks, {sums_of_passes})},
      {.text = "h2o:budget=30,recent=0,normalize,when=prompt_end",
       .acts = Acts::prompt_end,
       .roomy = "h2o:budget=1000,recent=0,normalize,when=prompt_end",
       .exempt = ranks_freely},
      {.text = "h2o:budget=30,positions=in_cache",
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000,positions=in_cache",
       .last = 15,
       .keep = naive::heavy_hitters(30),
       .exempt = ranks},
      {.text = "h2o:keep=0.3", .acts = Acts::every_pass, .roomy = "h2o:keep=1", .last = 15, .exempt = ranks},

      {.text = "snapkv:budget=30,window=8",
       .acts = Acts::prompt_end,
       .roomy = "snapkv:budget=1000,window=8",
       .last = 8,
       .keep = naive::votes(30, 8),
       .compresses = false,
       .exempt = ranks},
      {.text = "snapkv:budget=30,window=8,kernel=7,pooling=max",
       .acts = Acts::prompt_end,
       .roomy = "snapkv:budget=1000,window=8,pooling=max",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "snapkv:budget=30,window=8,pooling=max,order=after_pooling,reduce=max",
       .acts = Acts::prompt_end,
       .roomy = "snapkv:budget=1000,window=8,order=after_pooling,reduce=max",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "snapkv:budget=30,window=8,pyramid=4",
       .acts = Acts::prompt_end,
       .roomy = "snapkv:budget=1000,window=8,pyramid=4",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "snapkv:keep=0.3,window=8",
       .acts = Acts::prompt_end,
       .roomy = "snapkv:keep=1,window=8",
       .last = 8,
       .compresses = false,
       .exempt = ranks},

      {.text = "knorm:budget=30",
       .acts = Acts::prompt_end,
       .roomy = "knorm:budget=1000",
       .keep = naive::lowest_norms(30),
       .exempt = ranks_freely},
      {.text = "knorm:keep=0.3,pyramid=4",
       .acts = Acts::prompt_end,
       .roomy = "knorm:budget=1000,pyramid=4",
       .exempt = ranks_freely},

      {.text = "external_scores:budget=30",
       .acts = Acts::prompt_end,
       .roomy = "external_scores:budget=1000",
       .keep = naive::engine_scores(30),
       .exempt = {no_slots}},
      {.text = "external_scores:budget=30,recent=8,when=always",
       .acts = Acts::every_pass,
       .roomy = "external_scores:budget=1000,recent=8,when=always",
       .last = 8,
       .exempt = {evicts_in_prompts}},
      {.text = "external_scores:budget=30,recent=8,when=every_pass,positions=in_cache",
       .acts = Acts::every_pass,
       .roomy = "external_scores:budget=1000,recent=8,when=every_pass,positions=in_cache",
       .last = 8,
       .keep = naive::engine_scores(30, 8, true)},

      {.text = "kivi:bits=2,group=16,residual=32", .roomy = "kivi:group=16,residual=1024", .exempt = keeps_all},
      {.text = "kivi:bits=4,group=8,residual=16", .roomy = "kivi:group=8,residual=1024", .exempt = keeps_all},
      {.text = "kivi:bits=8,group=16,residual=32,metadata=f32",
       .roomy = "kivi:bits=8,group=16,residual=1024,metadata=f32",
       .exempt = keeps_all},
      {.text = "kivi:key_bits=4,value_bits=2,group=16,residual=16",
       .roomy = "kivi:key_bits=4,value_bits=2,group=16,residual=1024",
       .exempt = keeps_all},

      {.text = "quest:tokens=32,page=8,dense_layers=1",
       .roomy = "quest:tokens=1000,page=8,dense_layers=1",
       .select = naive::best_pages(32, 8, 1),
       .state_bytes = 512,
       .state_bytes_per_token = 2 * 2 * 16 * sizeof(float) / 8,  // two rows a page, in lists that double
       .exempt = with(keeps_all, {one_by_one})},
      {.text = "quest:tokens=16,page=4,dense_layers=0",
       .roomy = "quest:tokens=1000,page=4,dense_layers=0",
       .select = naive::best_pages(16, 4, 0),
       .state_bytes = 512,
       .state_bytes_per_token = 2 * 2 * 16 * sizeof(float) / 4,
       .exempt = with(keeps_all, {one_by_one})},

      {.text = "razor_attention:heads=none,budget=30",
       .acts = Acts::every_pass,
       .roomy = "razor_attention:heads=none,budget=1000",
       .slots = 30,
       .first = 4,
       .last = 25,
       .farewell = naive::compensating(4),
       .state_bytes = 128 + 2 * 16 * sizeof(double),  // the sums
       .exempt = streams},
      {.text = "razor_attention:heads=none,budget=30,compensation=none",
       .acts = Acts::every_pass,
       .roomy = "razor_attention:heads=none,budget=1000,compensation=none",
       .slots = 30,
       .first = 4,
       .last = 26,
       .state_bytes = 128,
       .exempt = streams},

      {.text = "mini_cache:start=0", .exempt = with(seals_all, {merges})},

      {.text = "ada_kv:base=snapkv,budget=30,window=8",
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=snapkv,budget=1000,window=8",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "ada_kv:base=snapkv,budget=30,window=8,safeguard=minimum,pyramid=4",
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=snapkv,budget=1000,window=8,safeguard=minimum,pyramid=4",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "ada_kv:base=h2o,budget=30",
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=h2o,budget=1000",
       .last = 15,
       .exempt = ranks},
      {.text = "ada_kv:base=knorm,keep=0.3",
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=knorm,keep=1",
       .exempt = ranks_freely},
      {.text = "ada_kv:base=external_scores,budget=30",
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=external_scores,budget=1000",
       .exempt = {no_slots}},

      {.text = "streaming_llm:budget=60" + sealing,
       .acts = Acts::every_pass,
       .roomy = "streaming_llm:budget=1000" + wide_sealing,
       .first = 4,
       .last = 56,
       .keep = naive::streaming(60),
       .exempt = streams},
      {.text = "h2o:budget=60" + sealing,
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000" + wide_sealing,
       .last = 30,
       .keep = naive::heavy_hitters(60),
       .exempt = ranks},
      {.text = "snapkv:budget=60,window=8" + sealing,
       .acts = Acts::prompt_end,
       .roomy = "snapkv:budget=1000,window=8" + wide_sealing,
       .last = 8,
       .keep = naive::votes(60, 8),
       .compresses = false,
       .exempt = ranks},
      {.text = "ada_kv:base=knorm,budget=60" + sealing,
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=knorm,budget=1000" + wide_sealing,
       .exempt = ranks_freely},
      {.text = "snapkv:budget=60,window=8 | h2o:budget=40,recent=8",
       .acts = Acts::every_pass,
       .roomy = "snapkv:budget=1000,window=8 | h2o:budget=1000,recent=8",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "h2o:budget=60 | quest:tokens=24,page=8,dense_layers=0",
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000 | quest:tokens=1000,page=8,dense_layers=0",
       .last = 30,
       .keep = naive::heavy_hitters(60),
       .select = naive::best_pages(24, 8, 0),
       .state_bytes = 512,
       .state_bytes_per_token = 2 * 2 * 16 * sizeof(float) / 8,
       .exempt = with(ranks, {one_by_one})},
  };
}

/// The list, made once.
inline const std::vector<PolicyCase>& all_policies() {
  static const std::vector<PolicyCase> all = make_policies();
  return all;
}

}  // namespace support
