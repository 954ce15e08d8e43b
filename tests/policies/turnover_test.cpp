// Endless generation: what Turnover drops, and what a Compact cache holds after so much text.
#include "kvc/policies/turnover.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/kvc.hpp"
#include "kvc/policies/compact.hpp"
#include "kvc/policies/snapkv.hpp"
#include "support/fake_head.hpp"
#include "support/random_tokens.hpp"
#include "support/session_bytes.hpp"

using namespace kvc;
using support::error_text;
using support::FakeHead;

namespace {

const CacheShape Shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .rotary = Rotary::standard(16)};
constexpr std::size_t Prompt = 200, Steps = 2000;
constexpr HeadId Heads[] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}};

const support::LayeredTokens& text() {
  static const support::LayeredTokens tokens(Shape, Prompt + Steps, 9);
  return tokens;
}
void prefill(CacheCore& cache, std::size_t count = Prompt) {
  for (std::size_t layer = 0; layer < Shape.layers; ++layer) cache.prefill(layer, text().tokens(layer, 0, count), {});
}
/// Decodes tokens [first, first + count), and returns all that attention gave.
std::vector<float> decode(CacheCore& cache, std::size_t first, std::size_t count) {
  std::vector<float> all, out(Shape.query_heads * Shape.head_dim);
  for (std::size_t t = first; t < first + count; ++t)
    for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
      cache.decode(layer, text().tokens(layer, t, 1), {out.data(), 1, out.size()});
      all.insert(all.end(), out.begin(), out.end());
    }
  return all;
}
std::vector<std::size_t> sizes(const CacheCore& cache) {
  std::vector<std::size_t> all;
  for (const HeadId id : Heads) all.push_back(cache.positions(id).size());
  return all;
}

/// Decodes one token of a head, of which the policy is told what attention its slots received.
void step(FakeHead<Turnover>& head, const std::vector<float>& received) {
  head.append(1);
  Observation seen;
  seen.event = Event::decode;
  seen.first_new = head.positions.size() - 1;
  seen.queries_count = 1;
  std::vector<float> sums = received;
  sums.resize(head.positions.size());
  seen.attention = {sums.data(), 1, sums.size()};
  Head<Turnover> view = head.head(Event::decode);
  head.policy.observe(view, seen);
  head.apply(head.plan(Event::decode));
}

}  // namespace

TEST_CASE("Turnover waits for a whole batch of tokens, and then drops those that received least") {
  FakeHead<Turnover> head({.budget = 6, .batch = 4, .recent = 2});
  head.append(6);
  head.apply(head.plan(Event::prompt_end));
  for (int i = 0; i < 3; ++i) {
    step(head, {0, 1, 5, 2, 4, 3});
    CHECK(head.positions.size() == std::size_t(7 + i));
  }
  step(head, {0, 1, 5, 2, 4, 3});
  // The first token and the two newest stay, whatever they received; of the others the three that received most.
  CHECK(head.positions == std::vector<Position>{0, 2, 4, 5, 8, 9});
}

TEST_CASE("What a token received counts half after every batch") {
  FakeHead<Turnover> head({.budget = 6, .batch = 2, .recent = 1});
  head.append(6);
  head.apply(head.plan(Event::prompt_end));
  for (int i = 0; i < 2; ++i) step(head, {0, 8, 4, 3, 2, 1});
  CHECK(head.positions == std::vector<Position>{0, 1, 2, 3, 4, 7});
  CHECK(head.slots[1].mass == 8);  // half of 16
  CHECK(head.slots[2].mass == 4);
}

TEST_CASE("Turnover leaves heads as uneven as the policy before it made them, however long the text goes on") {
  KVCache cache(Shape, SnapKV{.budget = 50, .window = 8} | Turnover{.budget = 50, .batch = 10, .recent = 8});
  prefill(cache);
  CHECK(sizes(cache) == std::vector<std::size_t>(4, 50));
  decode(cache, Prompt, 309);
  CHECK(sizes(cache) == std::vector<std::size_t>(4, 59));
  decode(cache, Prompt + 309, 1);
  CHECK(sizes(cache) == std::vector<std::size_t>(4, 50));
}

TEST_CASE(
    "Turnover lets a head grow to its budget where the prompt was shorter, and evicts nothing at a prompt's end") {
  KVCache cache(Shape, Turnover{.budget = 60, .batch = 16});
  prefill(cache, 20);
  decode(cache, 20, 55);
  CHECK(sizes(cache) == std::vector<std::size_t>(4, 75));
  decode(cache, 75, 1);
  CHECK(sizes(cache) == std::vector<std::size_t>(4, 60));
  KVCache whole(Shape, Turnover{.budget = 60, .batch = 16});
  prefill(whole);
  CHECK(sizes(whole) == std::vector<std::size_t>(4, Prompt));
}

TEST_CASE("A compact cache with a budget in slots does not grow, from four times its budget to forty times") {
  constexpr std::size_t Budget = 50, Batch = 32;
  KVCache cache(Shape, Compact{.budget = Budget, .replay = false, .batch = Batch});
  prefill(cache);
  const std::vector<std::size_t> granted = sizes(cache);
  std::size_t early = 0, late = 0;
  for (std::size_t t = 0; t < Steps; ++t) {
    decode(cache, Prompt + t, 1);
    std::size_t& most = t < Steps / 2 ? early : late;
    if (t >= 4 * Budget) most = std::max(most, cache.stats().bytes());
    const std::vector<std::size_t> held = sizes(cache);
    for (std::size_t i = 0; i < held.size(); ++i) REQUIRE(held[i] < granted[i] + Batch);
  }
  INFO("at most " << early << " bytes until step " << Steps / 2 << ", then " << late);
  CHECK(double(late) < 1.05 * double(early));
  KVCache growing(Shape, Compact{.budget = Budget, .replay = false, .batch = 0});
  prefill(growing);
  decode(growing, Prompt, 300);
  for (std::size_t i = 0; i < granted.size(); ++i) CHECK(sizes(growing)[i] == granted[i] + 300);
}

TEST_CASE("A fork and a loaded session of a compact cache go on as the cache does, across batches") {
  const Compact policy{.budget = 50, .replay = false, .batch = 16};
  KVCache cache(Shape, policy), loaded(Shape, policy);
  prefill(cache);
  decode(cache, Prompt, 37);
  auto fork = cache.fork();
  const support::Bytes bytes = support::saved(cache);
  support::BytesSource source(bytes);
  load(loaded, source);
  const std::vector<float> own = decode(cache, Prompt + 37, 60);
  CHECK(decode(fork, Prompt + 37, 60) == own);
  CHECK(decode(loaded, Prompt + 37, 60) == own);
  CHECK(sizes(fork) == sizes(cache));
}

TEST_CASE("Compact complains in its own words") {
  const auto complaint = [](const Compact& policy) { return error_text([&] { CacheCore(Shape, stages_of(policy)); }); };
  CHECK(complaint({.budget = 4}) == "Compact: one slot more than the sinks (5) must not exceed the budget (4)");
  CHECK(complaint({.bits = 5}) == "Compact: bits must be 2, 3, 4, 8 or 16, got 5");
  CHECK(complaint({.batch = 64}) ==
        "Compact: batch (64) needs a budget in slots: a share of the tokens grows with every token");
  CHECK(complaint({.budget = 40, .batch = 64}) == "none");
}
