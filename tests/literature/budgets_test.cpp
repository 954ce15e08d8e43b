// Policies that share out slots among layers and heads.
#include "catch_shim.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/all.hpp"
#include "literature/cake.hpp"
#include "literature/trial.hpp"

using namespace literature;

namespace {

/// CAKE that decides once, when the last layer of the prompt has ended.
struct CakeAtOnce {
  Budget budget = 1024;
  Cake cake = {};
  using Slot = Cake::Slot;
  using PromptState = Cake::PromptState;
  Needs needs() const { return cake.needs(); }
  void score(const Head<CakeAtOnce>& head, std::span<float> scores) const { cake.score(as_cake(head), scores); }
  void allocate_all(Cache<CakeAtOnce> heads, std::span<std::size_t> budgets) const {
    std::vector<Head<Cake>> same;
    for (const Head<CakeAtOnce>& head : heads) same.push_back(as_cake(head));
    cake.cascade(same, budgets);
  }

 private:
  static Head<Cake> as_cake(const Head<CakeAtOnce>& head) {
    Head<Cake> same;
    static_cast<HeadView&>(same) = head;
    same.slots = head.slots;
    same.prompt = head.prompt;
    return same;
  }
};

/// A model of eight layers, whose attention is more spread in some than in others.
const CacheShape Deep{.layers = 8, .query_heads = 6, .kv_heads = 3, .head_dim = 16};
constexpr std::size_t DeepTokens = 400;
const support::LayeredTokens& deep_text() {
  static const support::LayeredTokens tokens(Deep, DeepTokens + 40, 5);
  return tokens;
}
/// The queries of a layer, longer the deeper it lies.
std::vector<float> queries_of(std::size_t layer, std::size_t first, std::size_t count) {
  std::vector<float> queries;
  for (std::size_t t = first; t < first + count; ++t)
    for (const float x : deep_text().tokens(layer, t, 1).q[0]) queries.push_back(x * (0.4f + 0.2f * float(layer)));
  return queries;
}
/// Feeds a part of the prompt layer by layer; returns the bytes of the cache's rows after each.
std::vector<std::size_t> feed(CacheCore& cache, std::size_t first, std::size_t count, bool last) {
  std::vector<std::size_t> bytes;
  for (std::size_t layer = 0; layer < Deep.layers; ++layer) {
    kvc::Tokens tokens = deep_text().tokens(layer, first, count);
    const std::vector<float> queries = queries_of(layer, first, count);
    tokens.q = {queries.data(), count, tokens.q.dim};
    cache.prefill(layer, tokens, {}, last);
    bytes.push_back(cache.stats().payload + cache.stats().slack);
  }
  return bytes;
}
std::vector<std::vector<Position>> deep_positions(const CacheCore& cache) {
  std::vector<std::vector<Position>> all;
  for (std::uint32_t layer = 0; layer < Deep.layers; ++layer)
    for (std::uint32_t head = 0; head < Deep.kv_heads; ++head) all.push_back(cache.positions({layer, head}));
  return all;
}

}  // namespace

TEST_CASE("CAKE's cascade ends with the tokens that one decision at the end keeps, prompts after the first included") {
  for (const double keep : {0.15, 0.25, 0.6}) {
    const Budget budget = Budget::fraction(keep);
    CacheCore cascade(Deep, stages_of(Cake{.budget = budget, .window = 16}));
    CacheCore once(Deep, stages_of(CakeAtOnce{.budget = budget, .cake = {.window = 16}}));
    for (CacheCore* cache : {&cascade, &once}) {
      feed(*cache, 0, 150, false);
      feed(*cache, 150, 250, true);
    }
    const auto kept = deep_positions(cascade);
    CHECK(kept == deep_positions(once));
    CHECK(kept[0].size() != kept.back().size());
    std::size_t slots = 0;
    for (const auto& head : kept) slots += head.size();
    const std::size_t allowed = budget.at({0, 0}, DeepTokens, Deep) * Deep.heads();
    CHECK(slots <= allowed);
    CHECK(slots + Deep.heads() > allowed);  // less than a slot of a head is lost to rounding
  }
}

TEST_CASE(
    "On the way CAKE's cascade holds little more than in the end; one decision at the end waits for the whole prompt") {
  const Budget budget = Budget::fraction(0.25);
  CacheCore cascade(Deep, stages_of(Cake{.budget = budget, .window = 16}));
  CacheCore once(Deep, stages_of(CakeAtOnce{.budget = budget, .cake = {.window = 16}}));
  const std::vector<std::size_t> held = feed(cascade, 0, DeepTokens, true), waited = feed(once, 0, DeepTokens, true);
  const std::size_t peak = std::ranges::max(held), full = std::ranges::max(waited);
  INFO("cascade " << peak << " bytes at most, " << held.back() << " in the end; at once " << full);
  CHECK(full > 3 * held.back());
  CHECK(peak < held.back() * 5 / 4);
}

TEST_CASE(
    "DuoAttention keeps all tokens where a head retrieves, else the first and the newest, while tokens are generated") {
  const HeadTable table(4, 2, {1, 0, 0, 0, 1, 1, 0, 1});
  CacheCore cache(Small, stages_of(DuoAttention{.heads = table, .sinks = 10, .recent = 50}));
  feed_prompt(cache);
  decode(cache);
  constexpr Position End = PromptTokens + DecodedTokens;
  std::vector<Position> all, streamed;
  for (Position at = 0; at < End; ++at) {
    all.push_back(at);
    if (at < 10 || at >= End - 50) streamed.push_back(at);
  }
  for (const HeadId id : heads()) CHECK(cache.positions(id) == (table.retrieves(id) ? all : streamed));
}

TEST_CASE("D2O spares its first two layers and the last, and evens the others by their attention") {
  CacheCore cache(Deep, stages_of(D2O{.budget = 100}));
  feed(cache, 0, DeepTokens, true);
  std::vector<std::size_t> slots;
  for (std::uint32_t layer = 0; layer < Deep.layers; ++layer) slots.push_back(cache.positions({layer, 1}).size());
  for (const std::size_t spared : {std::size_t{0}, std::size_t{1}, std::size_t{7}}) CHECK(slots[spared] == DeepTokens);
  std::size_t sum = 0;
  for (std::size_t layer = 2; layer < 7; ++layer) {
    CHECK(slots[layer] < 200);
    sum += slots[layer];
  }
  CHECK(sum > 300);
  const auto [least, most] = std::ranges::minmax(std::span(slots).subspan(2, 5));
  CHECK(least < most);
}

TEST_CASE("SimLayerKV keeps the first and newest tokens of a layer whose last query sees little else, also later") {
  // The mean over the layer's query heads of the attention to tokens 0 to 3 and to the 60 before the last.
  std::vector<double> masses(Small.layers);
  for (std::size_t layer = 0; layer < Small.layers; ++layer)
    for (std::size_t query = 0; query < Small.query_heads; ++query) {
      const std::vector<double> attention = attention_from(layer, query, PromptTokens - 1, PromptTokens);
      for (std::size_t slot = 0; slot + 1 < PromptTokens; ++slot)
        if (slot < 4 || slot >= PromptTokens - 61) masses[layer] += attention[slot] / double(Small.query_heads);
    }
  std::vector<double> sorted = masses;
  std::ranges::sort(sorted);
  const double threshold = (sorted[1] + sorted[2]) / 2;
  CacheCore cache(Small, stages_of(SimLayerKV{.threshold = threshold, .recent = 60}), {.dense = {Scalar::f32}});
  CacheCore once(Small, stages_of(SimLayerKV{.threshold = threshold, .recent = 60, .when = When::prompt_end}));
  for (CacheCore* one : {&cache, &once}) {
    feed_prompt(*one);
    decode(*one);
  }
  for (const HeadId id : heads()) {
    const bool lazy = masses[id.layer] > threshold;
    std::vector<Position> expected, whole;
    for (Position at = 0; at < Position(PromptTokens + DecodedTokens); ++at) {
      if (!lazy || at < 4 || at >= Position(PromptTokens + DecodedTokens) - 59) expected.push_back(at);
      if (!lazy || at < 4 || at >= Position(PromptTokens) - 59) whole.push_back(at);
    }
    CHECK(cache.positions(id) == expected);
    CHECK(once.positions(id) == whole);
  }
}

TEST_CASE("SimLayerKV keeps everything after a prompt that is too short to judge a layer by") {
  CacheCore cache(Small, stages_of(SimLayerKV{.threshold = 0, .recent = PromptTokens}));
  feed_prompt(cache);
  decode(cache);
  CHECK(cache.stats().slots == 8 * (PromptTokens + DecodedTokens));
}
