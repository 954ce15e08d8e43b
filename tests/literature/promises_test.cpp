// What every policy of the literature inherits from the core without a line of its own: a prompt in parts is a prompt
// whole, forks, refused drafts, and pipelines.
#include <memory>

#include "catch_shim.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/all.hpp"
#include "kvc/policies/attention_matching.hpp"
#include "literature/cake.hpp"
#include "literature/hadamard.hpp"
#include "literature/importance_tiers.hpp"
#include "literature/nf4.hpp"
#include "literature/pre_rotary.hpp"
#include "literature/trial.hpp"

using namespace literature;

namespace {

struct Entry {
  std::string name;
  Stages stages;
  std::size_t most;  ///< slots that all heads may hold after the prompt
};

constexpr std::size_t Whole = PromptTokens * 8;

template <class P>
Entry entry(std::string name, const P& policy, std::size_t most = 100 * 8) {
  return {std::move(name), stages_of(policy), most};
}

HeadTable every_second_head() {
  return {4, 2, {1, 0, 1, 0, 1, 0, 1, 0}};
}
RankFusion fusion() {
  return {.policies = {H2O{.recent = 0, .normalize = true, .when = When::prompt_end}, KVzip{},
                       KVzip{.reduce = Reduce::sum}},
          .budget = 100};
}

/// The policies alone.
std::vector<Entry> alone() {
  // D2O spares three layers of four.
  return {
      entry("keydiff", KeyDiff{.budget = 100}),
      entry("tova", TOVA{.budget = 100}),
      entry("expected attention", ExpectedAttention{.budget = 100}),
      entry("kvzip", KVzip{.budget = 100}),
      entry("pyramidkv", SnapKV{.budget = Budget::pyramid(100, 32), .window = 32}),
      entry("cake", Cake{.budget = 100}),
      entry("rank fusion", fusion()),
      entry("d2o", D2O{.budget = 100}, 6 * PromptTokens + 2 * 200),
      entry("d2o with even layers", D2O{.budget = 100, .layer_budgets = false}),
      entry("attention matching", AttentionMatching{.budget = 100}),
      entry("duo attention", DuoAttention{.heads = every_second_head(), .sinks = 10, .recent = 50}, 4 * 300 + 4 * 60),
      entry("ada_kv over expected attention", AdaKV{.base = ExpectedAttention{}, .budget = 100}, 101 * 8),
      entry("nf4", Nf4{}, Whole),
      entry("hadamard", HadamardQuant{}, Whole),
      entry("before rope", PreRotary{}, Whole),
      entry("think", ThinK{.recent = 20}, Whole),
      entry("importance tiers", ImportanceTiers{}, Whole),
      entry("per layer", PerLayer{Full{.bits = 8}, 0, 1} | PerLayer{KIVI{.bits = 2, .residual = 32}, 2}, Whole)};
}

/// The same in pipelines: what evicts before KIVI, what quantizes behind SnapKV, and a few mixtures.
std::vector<Entry> composed() {
  const KIVI kivi{.bits = 4, .residual = 32};
  const SnapKV snapkv{.budget = 150, .window = 32};
  return {entry("keydiff | kivi", KeyDiff{.budget = 100} | kivi),
          entry("tova | kivi", TOVA{.budget = 100} | kivi),
          entry("expected attention | kivi", ExpectedAttention{.budget = 100} | kivi),
          entry("kvzip | kivi", KVzip{.budget = 100} | kivi),
          entry("pyramidkv | kivi", SnapKV{.budget = Budget::pyramid(100, 32), .window = 32} | kivi),
          entry("cake | kivi", Cake{.budget = 100} | kivi),
          entry("rank fusion | kivi", fusion() | kivi),
          entry("d2o | kivi", D2O{.budget = 100} | kivi, 6 * PromptTokens + 2 * 200),
          entry("attention matching | kivi", AttentionMatching{.budget = 100} | kivi),
          entry("duo attention | kivi", DuoAttention{.heads = every_second_head(), .sinks = 10, .recent = 50} | kivi,
                4 * 300 + 4 * 60),
          entry("snapkv | nf4", snapkv | Nf4{}, 150 * 8),
          entry("snapkv | hadamard", snapkv | HadamardQuant{}, 150 * 8),
          entry("snapkv | before rope", snapkv | PreRotary{}, 150 * 8),
          entry("snapkv | think", snapkv | ThinK{.recent = 20}, 150 * 8),
          entry("snapkv | importance tiers", snapkv | ImportanceTiers{}, 150 * 8),
          entry("per layer: tova, keydiff; hadamard",
                PerLayer{TOVA{.budget = 100}, 0, 1} | PerLayer{KeyDiff{.budget = 90}, 2} | HadamardQuant{}),
          entry("kvzip | think", KVzip{.budget = 150} | ThinK{}, 150 * 8),
          entry("duo attention | per layer",
                DuoAttention{.heads = every_second_head(), .sinks = 10, .recent = 50} |
                    PerLayer{Full{.bits = 8}, 0, 1} | PerLayer{kivi, 2},
                4 * 300 + 4 * 60)};
}

std::vector<Entry> everything() {
  std::vector<Entry> all = alone();
  for (Entry& each : composed()) all.push_back(std::move(each));
  return all;
}

/// All of the prompt but the call that ends it: the last layer's second part, or compress().
void feed_prompt_until_it_ends(CacheCore& cache) {
  const bool probes = wants_probe(cache);
  for (std::size_t layer = 0; layer < Small.layers; ++layer)
    cache.prefill(layer, text().tokens(layer, 0, 100), {}, false);
  for (std::size_t layer = 0; layer < (probes ? 4 : 3); ++layer)
    cache.prefill(layer, text().tokens(layer, 100, PromptTokens - 100), {}, !probes);
  for (std::size_t layer = 0; probes && layer < Small.layers; ++layer)
    cache.probe(layer, text().tokens(layer, 0, PromptTokens), {}, 0, Position(PromptTokens));
}

/// Refuses, in the last head, whatever the stages before it did.
struct Refusal {
  std::shared_ptr<bool> armed = std::make_shared<bool>(false);
  void evict(Head<Refusal>& head, Plan&) const {
    if (*armed && head.id == HeadId{3, 1}) fail(ErrorCode::incompatible, "refused");
  }
};

}  // namespace

TEST_CASE("A policy of the literature keeps no more than it may, alone and in a pipeline") {
  for (const Entry& each : everything()) {
    INFO(each.name);
    CacheCore cache(Small, each.stages);
    feed_prompt(cache);
    const std::size_t slots = cache.stats().slots;
    CHECK(slots <= each.most);
    CHECK(slots >= each.most * 2 / 3);
  }
}

TEST_CASE("A policy of the literature does with a prompt in parts what it does with it whole, to the bit") {
  for (const Entry& each : everything()) {
    INFO(each.name);
    CacheCore whole(Small, each.stages), parts(Small, each.stages);
    feed_prompt(whole);
    feed_prompt(parts, {100, 7, 120, 73});
    CHECK(holdings(parts) == holdings(whole));
    CHECK((decode(parts) == decode(whole)));
    CHECK(holdings(parts).positions == holdings(whole).positions);
  }
}

TEST_CASE("A fork of a policy of the literature goes on as the original does, and both on their own") {
  for (const Entry& each : everything()) {
    INFO(each.name);
    CacheCore cache(Small, each.stages), twin(Small, each.stages);
    feed_prompt(cache);
    feed_prompt(twin);
    CacheCore fork = cache.fork();
    const std::vector<float> expected = decode(twin);
    CHECK((decode(fork) == expected));
    CHECK((decode(cache) == expected));
    CHECK(holdings(cache) == holdings(twin));
    decode(fork, PromptTokens + DecodedTokens, DecodedTokens);
    CHECK(holdings(cache) == holdings(twin));
  }
}

TEST_CASE("Drafted tokens that are refused leave a policy of the literature as it was") {
  for (const Entry& each : everything()) {
    INFO(each.name);
    CacheCore cache(Small, each.stages), twin(Small, each.stages);
    for (CacheCore* one : {&cache, &twin}) {
      feed_prompt(*one);
      decode(*one, PromptTokens, 5);
    }
    for (std::size_t layer = 0; layer < Small.layers; ++layer) {
      support::Outputs out(Small, 3);
      cache.draft(layer, text().tokens(layer, PromptTokens + DecodedTokens, 3), out.rows(0, 3));
    }
    cache.accept(0);
    CHECK(holdings(cache) == holdings(twin));
    CHECK((decode(cache, PromptTokens + 5, 10) == decode(twin, PromptTokens + 5, 10)));
  }
}

TEST_CASE("A call that a later stage refuses leaves a policy of the literature as it was, and may be repeated") {
  for (Entry& each : everything()) {
    INFO(each.name);
    const Refusal refusal;
    each.stages.push_back(std::make_shared<const StageOf<Refusal>>(refusal));
    CacheCore cache(Small, each.stages), twin(Small, each.stages);
    feed_prompt(twin);
    const bool probes = wants_probe(cache);
    const std::vector<float> expected = decode(twin, PromptTokens, 3);

    feed_prompt_until_it_ends(cache);
    const auto end = [&] {
      if (probes)
        cache.compress();
      else
        cache.prefill(3, text().tokens(3, 100, PromptTokens - 100), {});
    };
    const Holdings open = holdings(cache);
    *refusal.armed = true;
    CHECK_THROWS_AS(end(), Error);
    CHECK(holdings(cache) == open);
    *refusal.armed = false;
    end();
    std::vector<float> answers;
    for (std::size_t t = 0; t < 3; ++t)
      for (std::size_t layer = 0; layer < Small.layers; ++layer) {
        support::Outputs out(Small, 1);
        *refusal.armed = layer == 3;
        if (layer == 3) CHECK_THROWS_AS(cache.decode(3, text().tokens(3, PromptTokens + t, 1), out.rows(0, 1)), Error);
        *refusal.armed = false;
        cache.decode(layer, text().tokens(layer, PromptTokens + t, 1), out.rows(0, 1));
        answers.insert(answers.end(), out.values().begin(), out.values().end());
      }
    CHECK((answers == expected));
    CHECK(holdings(cache) == holdings(twin));
  }
}
