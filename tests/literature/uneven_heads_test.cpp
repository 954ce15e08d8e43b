// What policies do with heads that are empty, uneven, rolled back, or full of far positions.
#include <cmath>
#include <map>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/policies/all.hpp"
#include "support/fake_head.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;
using support::RandomTokens;

namespace {

const CacheShape Small{
    .layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .rotary = Rotary::standard(16, 10000)};
const RandomTokens& text() {
  static const RandomTokens tokens(Small, 400, 5);
  return tokens;
}

void prefill(CacheCore& cache, std::size_t first, std::size_t count, bool last = true) {
  for (std::size_t layer = 0; layer < Small.layers; ++layer)
    cache.prefill(layer, text().tokens(first, count), {}, last);
}
void probe(CacheCore& cache, std::size_t count, Position end) {
  for (std::size_t layer = 0; layer < Small.layers; ++layer) cache.probe(layer, text().tokens(0, count), {}, 0, end);
}
void decode(CacheCore& cache, std::size_t first, std::size_t count) {
  for (std::size_t token = first; token < first + count; ++token)
    for (std::size_t layer = 0; layer < Small.layers; ++layer) {
      support::Outputs out(Small, 1);
      cache.decode(layer, text().tokens(token, 1), out.rows(0, 1));
    }
}

/// Empties the first head of every layer.
struct Emptier {
  When when = When::every_chunk;
  void evict(Head<Emptier>& head, Plan& plan) const {
    if (head.acts && head.id.head == 0) plan.drop_all();
  }
};
/// Half of the tokens, of which the first head of a layer gets ten more than the second when a prompt ends.
struct TenMore {
  Budget budget = Budget::fraction(0.5);
  When when = When::every_pass;
  void score(const Head<TenMore>&, std::span<float> scores) const { std::ranges::fill(scores, 1.0f); }
  void allocate(Layer<TenMore> heads, std::span<std::size_t> budgets) const {
    if (heads[0].event == Event::decode) return;
    budgets[0] += 5;
    budgets[1] -= 5;
  }
};
/// An index of the first channel of every key. Whenever it selects, it counts the slots that read otherwise.
struct FirstChannel {
  struct State {
    std::vector<float> values;
  };
  void index(Head<FirstChannel>& head, std::size_t from) const {
    head.state->values.resize(from);
    const ConstRows keys = head.keys_from(from);
    for (std::size_t slot = 0; slot < keys.count; ++slot) head.state->values.push_back(keys[slot][0]);
  }
  void select(const Head<FirstChannel>& head, ConstRows, Selection& selection) const {
    REQUIRE(head.state->values.size() == head.size());
    const ConstRows keys = head.keys();
    for (std::size_t slot = 0; slot < head.size(); ++slot) stale += head.state->values[slot] != keys[slot][0];
    asked += head.size();
    selection.range(0, head.size());
  }
  static inline std::size_t stale = 0, asked = 0;
};
/// Reads the heads of a layer slot by slot, and leaves each its own slots.
struct SlotBySlot {
  Budget budget = 20;
  static constexpr EqualSlots needs_equal_slots = EqualSlots::layer;
  void score_layer(Layer<SlotBySlot>, ScoreSpans scores) const {
    for (const std::span<float> each : scores) std::ranges::fill(each, 1.0f);
  }
};

}  // namespace

TEST_CASE("A head that a stage before has emptied is no trouble to any policy that scores") {
  for (const char* policy : {"foresight", "pursuit", "kvzip", "refit:policy=knorm", "refit:policy=foresight", "compact",
                             "compact:replay=false", "rank_fusion:policies=foresight+knorm", "tova",
                             "chunkkv:base=knorm", "criticalkv:base=knorm", "ada_kv:base=knorm", "d2o", "lagkv:lag=4",
                             "r_kv:window=4", "cam:base=knorm", "expected_attention", "keydiff", "h2o:recent=4"}) {
    const std::string name(policy);
    INFO(name);
    const char* budget = name.find(':') == std::string::npos ? ":budget=20" : ",budget=20";
    KVCache cache(Small, Emptier{} | AnyPolicy::parse(name + budget));
    prefill(cache, 0, 60, false);
    probe(cache, 40, 60);
    cache.compress();
    CHECK(cache.positions({0, 0}).empty());
    CHECK(cache.positions({0, 1}).size() >= 10);
    decode(cache, 60, 3);
    prefill(cache, 63, 60, false);
    probe(cache, 40, 123);
    cache.compress();
    CHECK(cache.positions({0, 0}).empty());
  }
}

TEST_CASE("Policies that score the heads of a layer alike do so by position where heads hold different tokens") {
  for (const Member& member : {Member(TOVA{}), Member(ChunkKV{.base = Knorm{}, .chunk = 1})}) {
    KVCache cache(Small, RankFusion{.policies = {member, Knorm{}}, .budget = 20, .over = Scope::cache});
    for (std::size_t prompt = 0; prompt < 3; ++prompt) prefill(cache, 60 * prompt, 60);
    std::size_t held = 0;
    for (std::uint32_t layer = 0; layer < 2; ++layer)
      for (std::uint32_t head = 0; head < 2; ++head) held += cache.positions({layer, head}).size();
    CHECK(held >= 78);  // protected slots lie beyond the budget
    CHECK(held <= 84);
  }
  // Both heads hold token 3, and each holds others.
  const std::vector<Position> of_first{1, 3}, of_second{3, 5, 9};
  std::vector<Head<Knorm>> layer(2);
  layer[0].positions = of_first;
  layer[1].positions = of_second;
  std::vector<float> first{1, 2}, second{10, 20, 30};
  const std::vector<std::span<float>> scores{first, second};
  share_scores<Knorm>(layer, scores);
  CHECK(first == std::vector<float>{1, 12});
  CHECK(second == std::vector<float>{12, 20, 30});
}

TEST_CASE(
    "A policy that reads heads slot by slot is refused where it, its owner or a stage before leaves them uneven") {
  const auto complaint = [](auto policy) { return support::error_text([&] { CacheCore(Small, stages_of(policy)); }); };
  CHECK(complaint(SnapKV{.budget = 100} | AdaKV{.base = SlotBySlot{}}).find("a stage before it leaves them") !=
        std::string::npos);
  CHECK(complaint(SlotBySlot{}).find("but it leaves them different positions") != std::string::npos);
  CHECK(complaint(AdaKV{.base = SlotBySlot{}}).find("but it leaves them different positions") != std::string::npos);
  CHECK(complaint(ChunkKV{.base = SlotBySlot{}, .budget = 20}) == "none");
}

TEST_CASE("What KVzip gathers grows with the tokens, not with their positions") {
  KVCache cache(Small, KVzip{.budget = 20});
  std::vector<Position> positions;
  for (Position t = 0; t < 60; ++t) positions.push_back(t < 30 ? t : 1'000'000'000 + t);
  for (std::size_t layer = 0; layer < Small.layers; ++layer) {
    Tokens tokens = text().tokens(0, 60);
    tokens.positions = positions;
    cache.prefill(layer, tokens, {}, false);
  }
  probe(cache, 10, 1'000'000'060);
  CHECK(cache.stats().metadata < 16'000);
  cache.compress();
  CHECK(cache.positions({0, 0}).back() > 1'000'000'000);
}

TEST_CASE("The queries of a probe behind a prompt that has ended serve no later prompt") {
  KVCache twice(Small, Foresight{.budget = 20}), once(Small, Foresight{.budget = 20});
  for (CacheCore* cache : {static_cast<CacheCore*>(&twice), static_cast<CacheCore*>(&once)}) {
    prefill(*cache, 0, 100);
    if (cache == &twice) probe(*cache, 30, 100);
    prefill(*cache, 100, 60, false);
    probe(*cache, 8, 160);
    cache->compress();
  }
  for (std::uint32_t head = 0; head < 2; ++head) CHECK(twice.positions({1, head}) == once.positions({1, head}));
}

TEST_CASE("A head that lost slots and was rolled back to its first ones is shown their positions") {
  struct DropsEven {
    When when = When::prompt_end;
    void evict(Head<DropsEven>& head, Plan& plan) const {
      for (std::size_t slot = 2; head.acts && slot < head.size(); slot += 2) plan.drop(slot);
    }
  };
  KVCache cache(Small, DropsEven{} | ChunkKV{.base = Knorm{}, .budget = 30});
  prefill(cache, 0, 40);
  (void)cache.truncate(2);
  cache.compress();
  prefill(cache, 40, 60);
  CHECK(cache.positions({0, 0})[0] == 0);
  CHECK(cache.positions({0, 0}).size() == 30);
}

TEST_CASE(
    "A budget that is a share of the tokens grows while they are generated, also under verbs that look at several "
    "heads") {
  for (const char* policy : {"tova:keep=0.5", "d2o:keep=0.5,layer_budgets=false", "h2o:keep=0.5,recent=4"}) {
    INFO(policy);
    KVCache cache(Small, AnyPolicy::parse(policy));
    prefill(cache, 0, 100);
    const std::size_t held = cache.positions({0, 0}).size();
    decode(cache, 100, 100);
    CHECK(cache.positions({0, 0}).size() >= held + 48);
    CHECK(cache.positions({0, 0}).size() <= held + 52);
  }
}

TEST_CASE("What a verb allocated of a budget that grows, grows with it") {
  KVCache cache(Small, TenMore{});
  prefill(cache, 0, 100);
  CHECK(cache.positions({1, 0}).size() == 55);
  CHECK(cache.positions({1, 1}).size() == 45);
  decode(cache, 100, 60);
  CHECK(cache.positions({1, 0}).size() == 85);
  CHECK(cache.positions({1, 1}).size() == 75);
}

TEST_CASE("A rollback is exact where a policy that looked at the tokens keeps nothing about them") {
  KVCache cache(Small, AnyPolicy::parse("compact:replay=false,keep=1,bits=16"));
  prefill(cache, 0, 60);
  decode(cache, 60, 10);
  CHECK(cache.truncate(65));
  KVCache watched(Small, H2O{.budget = 100});
  prefill(watched, 0, 60);
  decode(watched, 60, 10);
  CHECK_FALSE(watched.truncate(65));
}

TEST_CASE("Values so long that their squares overflow leave a score a number") {
  CacheOptions wide;
  wide.dense = {Scalar::f32};
  std::vector<float> long_values(60 * 2 * 16, 1e28f);
  KVCache cache(Small, ExpectedAttention{.budget = 20}, wide);
  for (std::size_t layer = 0; layer < Small.layers; ++layer) {
    Tokens tokens = text().tokens(0, 60);
    tokens.v = {long_values.data(), 60, 32};
    cache.prefill(layer, tokens, {}, true);
  }
  CHECK(cache.positions({0, 0}).size() == 20);
}

TEST_CASE("An index is of the keys as they read when it is asked, after a seal too") {
  KVCache cache(Small, StreamingLLM{.budget = 80} | KIVI{.bits = 2, .group = 16, .residual = 16} | FirstChannel{});
  prefill(cache, 0, 70);
  decode(cache, 70, 80);
  CHECK(FirstChannel::asked > 80 * 4 * 70);
  CHECK(FirstChannel::stale == 0);
}
