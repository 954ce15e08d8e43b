#include "catch_shim.hpp"

#include <algorithm>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/policies/all.hpp"
#include "kvc/thread_pool.hpp"
#include "support/naive_cache.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;
using support::Outputs;
using support::RandomTokens;

namespace {

const CacheShape Small{.layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 32};

/// Policies whose budgets bite on a text of a few hundred tokens.
const char* const BitingPolicies[] = {
    "full",
    "full:bits=8",
    "streaming_llm:budget=60",
    "h2o:budget=60",
    "snapkv:budget=80,window=16",
    "knorm:budget=70",
    "kivi:bits=2,group=32,residual=64",
    "quest:tokens=64,page=16,dense_layers=1",
    "h2o:budget=150 | kivi:residual=64",
    "streaming_llm:budget=150 | kivi:residual=32",
    "snapkv:budget=150,window=16 | kivi:residual=64",
};

/// Everything that a cache answers to a prompt in parts of `chunk` tokens and to single tokens.
struct Run {
  Outputs out;
  std::vector<std::vector<Position>> positions;

  friend bool operator==(const Run&, const Run&) = default;
};

void feed_prompt(CacheCore& cache, const RandomTokens& text, std::size_t prompt, std::size_t chunk,
                 std::vector<Outputs>* outs = nullptr) {
  for (std::size_t first = 0; first < prompt; first += chunk) {
    const std::size_t count = std::min(chunk, prompt - first);
    for (std::size_t layer = 0; layer < cache.shape().layers; ++layer)
      cache.prefill(layer, text.tokens(first, count), outs ? (*outs)[layer].rows(first, count) : Rows<float>{},
                    first + count == prompt);
  }
}

Run run(CacheCore& cache, const RandomTokens& text, std::size_t prompt, std::size_t steps, std::size_t chunk) {
  std::vector<Outputs> outs(cache.shape().layers, Outputs(cache.shape(), prompt + steps));
  feed_prompt(cache, text, prompt, chunk, &outs);
  for (std::size_t step = prompt; step < prompt + steps; ++step)
    for (std::size_t layer = 0; layer < cache.shape().layers; ++layer)
      cache.decode(layer, text.tokens(step, 1), outs[layer].rows(step, 1));
  Run result{outs.back(), {}};
  for (std::uint32_t layer = 0; layer < cache.shape().layers; ++layer)
    for (std::uint32_t head = 0; head < cache.shape().kv_heads; ++head)
      result.positions.push_back(cache.positions({layer, head}));
  return result;
}

Run run_policy(const char* policy, const CacheShape& shape, std::size_t prompt, std::size_t steps, std::size_t chunk,
               const CacheOptions& options = {}) {
  KVCache cache(shape, AnyPolicy::parse(policy), options);
  return run(cache, RandomTokens(shape, prompt + steps, 11), prompt, steps, chunk);
}

std::vector<float> dense_copy(const CacheCore& cache, HeadId id) {
  const std::size_t slots = cache.positions(id).size(), dim = cache.shape().head_dim;
  std::vector<float> copy(2 * slots * dim);
  cache.gather(id, {copy.data(), slots, dim}, {copy.data() + slots * dim, slots, dim});
  return copy;
}

}  // namespace

TEST_CASE("A prompt fed in chunks gives the same bits as the whole prompt at once") {
  for (const char* policy : {"full", "full:bits=8", "streaming_llm:budget=60", "snapkv:budget=80,window=16",
                             "knorm:budget=70", "kivi:residual=64", "snapkv:budget=150,window=16 | kivi:residual=64"}) {
    const Run whole = run_policy(policy, Small, 301, 30, 301);
    for (std::size_t chunk : {1u, 7u, 16u, 100u}) {
      INFO(policy << " in chunks of " << chunk);
      CHECK(run_policy(policy, Small, 301, 30, chunk) == whole);
    }
  }
}

TEST_CASE("H2O's sums over chunks equal those over the prompt up to rounding") {
  for (const char* policy : {"h2o:budget=60", "h2o:budget=150 | kivi:residual=64"}) {
    const Run whole = run_policy(policy, Small, 301, 0, 301);
    for (std::size_t chunk : {1u, 7u, 16u, 100u}) {
      const Run parts = run_policy(policy, Small, 301, 0, chunk);
      INFO(policy << " in chunks of " << chunk);
      CHECK(parts.positions == whole.positions);
      CHECK(parts.out == whole.out);
    }
  }
}

TEST_CASE("With a budget for every token each policy gives the same bits as the full cache") {
  const Run full = run_policy("full", Small, 200, 60, 200);
  for (const char* policy :
       {"streaming_llm:budget=260", "h2o:budget=260", "snapkv:budget=260,window=16", "knorm:budget=260",
        "quest:tokens=272,page=16", "kivi:residual=512", "h2o:budget=300 | kivi:residual=512"}) {
    INFO(policy);
    CHECK(run_policy(policy, Small, 200, 60, 200) == full);
  }
  KVCache ada(Small, AdaKV{.budget = 300});
  CHECK(run(ada, RandomTokens(Small, 260, 11), 200, 60, 200) == full);
}

TEST_CASE("Every executor gives the same bits") {
  for (const char* policy : BitingPolicies) {
    const Run serial = run_policy(policy, Small, 300, 40, 128);
    for (std::size_t threads : {2u, 3u}) {
      ThreadPool pool(threads);
      INFO(policy << " on " << threads << " threads");
      CHECK(run_policy(policy, Small, 300, 40, 128, {.executor = &pool}) == serial);
    }
  }
}

TEST_CASE("Every executor gives the same bits where a head is split into parts") {
  const CacheShape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 16};
  for (const char* policy : {"full", "streaming_llm:budget=9000", "kivi:residual=128,group=16", "h2o:budget=9000"}) {
    const Run serial = run_policy(policy, shape, 8189, 8, 8189);
    ThreadPool pool(3);
    INFO(policy);
    CHECK(run_policy(policy, shape, 8189, 8, 8189, {.executor = &pool}) == serial);
  }
}

TEST_CASE("decode_batch gives the same bits as decoding every sequence alone, whatever their policies and lengths") {
  ThreadPool pool(2);
  std::vector<std::unique_ptr<KVCache<AnyPolicy>>> alone, together;
  std::vector<CacheCore*> batch;
  const RandomTokens text(Small, 500, 12);
  for (const char* policy : BitingPolicies) {
    alone.push_back(std::make_unique<KVCache<AnyPolicy>>(Small, AnyPolicy::parse(policy)));
    together.push_back(std::make_unique<KVCache<AnyPolicy>>(Small, AnyPolicy::parse(policy)));
    batch.push_back(together.back().get());
    const std::size_t prompt = 100 + 17 * alone.size();
    feed_prompt(*alone.back(), text, prompt, prompt);
    feed_prompt(*together.back(), text, prompt, prompt);
  }
  const std::size_t count = batch.size();
  for (std::size_t step = 300; step < 420; step += count)
    for (std::size_t layer = 0; layer < Small.layers; ++layer) {
      Outputs one(Small, count), all(Small, count);
      decode_batch(batch, layer, text.tokens(step, count), all.rows(0, count), pool);
      for (std::size_t b = 0; b < count; ++b) alone[b]->decode(layer, text.tokens(step + b, 1), one.rows(b, 1));
      CHECK(all == one);
    }
}

TEST_CASE("decode_batch gives the same bits as decoding alone where a head is split into parts") {
  const CacheShape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 16};
  const RandomTokens text(shape, 8195, 13);
  KVCache alone(shape, Full{}), only(shape, Full{}), first(shape, Full{}), second(shape, Full{});
  for (KVCache<Full>* cache : {&alone, &only, &first, &second}) cache->prefill(0, text.tokens(0, 8190), {});
  ThreadPool pool(2);
  CacheCore *one[] = {&only}, *two[] = {&first, &second};  // threads share a head, and take one each
  for (std::size_t t = 8190; t < 8194; ++t) {
    Outputs a(shape, 1), b(shape, 1), c(shape, 2);
    alone.decode(0, text.tokens(t, 1), a.rows(0, 1));
    decode_batch(one, 0, text.tokens(t, 1), b.rows(0, 1), pool);
    decode_batch(two, 0, text.tokens(t, 2), c.rows(0, 2), pool);  // what `second` reads is not looked at
    CHECK(a == b);
    CHECK(std::ranges::equal(c.rows(0, 1)[0], a.rows(0, 1)[0]));
  }
}

TEST_CASE("A fork goes on as its parent would have, and neither sees what the other does") {
  for (const char* policy : BitingPolicies) {
    const RandomTokens text(Small, 500, 14), other(Small, 500, 15);
    KVCache parent(Small, AnyPolicy::parse(policy)), twin(Small, AnyPolicy::parse(policy));
    run(parent, text, 200, 30, 200);
    run(twin, text, 200, 30, 200);
    KVCache fork = parent.fork();
    for (std::size_t step = 230; step < 330; ++step)
      for (std::size_t layer = 0; layer < Small.layers; ++layer) {
        Outputs a(Small, 1), b(Small, 1), ignored(Small, 1);
        fork.decode(layer, other.tokens(step, 1), ignored.rows(0, 1));
        parent.decode(layer, text.tokens(step, 1), a.rows(0, 1));
        twin.decode(layer, text.tokens(step, 1), b.rows(0, 1));
        INFO(policy << ", step " << step);
        REQUIRE(a == b);
      }
    CHECK(dense_copy(parent, {1, 1}) == dense_copy(twin, {1, 1}));
    CHECK(dense_copy(parent, {1, 1}) != dense_copy(fork, {1, 1}));
  }
}

TEST_CASE("A cleared cache is a new one") {
  for (const char* policy : BitingPolicies) {
    KVCache cache(Small, AnyPolicy::parse(policy));
    const Run first = run(cache, RandomTokens(Small, 300, 11), 250, 50, 250);
    cache.clear();
    CHECK(cache.stats().seen == 0);
    CHECK(cache.stats().slots == 0);
    CHECK(cache.positions({0, 0}).empty());
    INFO(policy);
    CHECK(run(cache, RandomTokens(Small, 300, 11), 250, 50, 250) == first);
  }
}

TEST_CASE("Drafted and accepted tokens leave the cache as decoded ones do") {
  for (const char* policy : {"full", "streaming_llm:budget=300", "h2o:budget=300", "kivi:residual=32",
                             "quest:tokens=512,page=16,dense_layers=0"}) {
    const RandomTokens text(Small, 400, 16), wrong(Small, 400, 17);
    KVCache drafting(Small, AnyPolicy::parse(policy), {.dense = {Scalar::f32}}),
        decoding(Small, AnyPolicy::parse(policy), {.dense = {Scalar::f32}});
    feed_prompt(drafting, text, 100, 100);
    feed_prompt(decoding, text, 100, 100);
    std::size_t at = 100;
    for (std::size_t accepted : {3u, 0u, 1u, 4u, 2u, 4u, 0u, 3u, 4u, 4u, 4u, 4u, 4u}) {
      for (std::size_t drafted = 0; drafted < 4; ++drafted)
        for (std::size_t layer = 0; layer < Small.layers; ++layer) {
          Outputs out(Small, 1);
          drafting.draft(layer, (drafted < accepted ? text : wrong).tokens(at + drafted, 1), out.rows(0, 1));
        }
      drafting.accept(accepted);
      for (std::size_t i = 0; i < accepted; ++i)
        for (std::size_t layer = 0; layer < Small.layers; ++layer) {
          Outputs out(Small, 1);
          decoding.decode(layer, text.tokens(at + i, 1), out.rows(0, 1));
        }
      at += accepted;
      INFO(policy << " at " << at);
      CHECK(drafting.positions({1, 1}) == decoding.positions({1, 1}));
      CHECK(naive::distance(dense_copy(drafting, {1, 1}), dense_copy(decoding, {1, 1})) == 0);
      CHECK(drafting.stats().seen == decoding.stats().seen);
      Outputs a(Small, 1), b(Small, 1);
      drafting.attend(1, text.tokens(at, 1).q, a.rows(0, 1));
      decoding.attend(1, text.tokens(at, 1).q, b.rows(0, 1));
      CHECK(naive::distance(a.values(), b.values()) < 1e-6);
    }
  }
}

TEST_CASE("H2O learns the same from accepted drafts as from a decode of those tokens, after evictions too") {
  const RandomTokens text(Small, 300, 18);
  const CacheOptions exact{.dense = {Scalar::f32}};
  KVCache drafting(Small, H2O{.budget = 60}, exact), decoding(Small, H2O{.budget = 60}, exact);
  feed_prompt(drafting, text, 100, 100);
  feed_prompt(decoding, text, 100, 100);
  for (std::size_t at = 100; at < 220; at += 3) {
    for (std::size_t layer = 0; layer < Small.layers; ++layer) {
      Outputs a(Small, 4), b(Small, 4);
      for (std::size_t i = 0; i < 4; ++i) drafting.draft(layer, text.tokens(at + i, 1), a.rows(i, 1));
      decoding.decode(layer, text.tokens(at, 3), b.rows(0, 3));
      b.rows(3, 1)[0][0] = 0;
      const std::size_t compared = 3 * Small.query_heads * Small.head_dim;
      const std::span<const float> got(a.values().data(), compared), expected(b.values().data(), compared);
      CHECK(naive::distance(got, expected) < 2e-6);
    }
    drafting.accept(3);
    for (std::uint32_t head = 0; head < 2; ++head) {
      CHECK(drafting.positions({1, head}) == decoding.positions({1, head}));
      std::vector<float> got, expected;
      for (const auto& slot : drafting.slots<H2O>({1, head})) got.push_back(slot.mass);
      for (const auto& slot : decoding.slots<H2O>({1, head})) expected.push_back(slot.mass);
      CHECK(naive::distance(got, expected) < 1e-5);
    }
  }
}

TEST_CASE("Truncating is exact up to the last time that the policy acted, and says so") {
  const RandomTokens text(Small, 400, 19);
  const auto restored = [&](const char* policy, std::size_t prompt, std::size_t steps, Position from) {
    KVCache cache(Small, AnyPolicy::parse(policy)), fresh(Small, AnyPolicy::parse(policy));
    run(cache, text, prompt, steps, prompt);
    const bool exact = cache.truncate(from);
    run(fresh, text, prompt, static_cast<std::size_t>(from) - prompt, prompt);
    bool same = cache.stats().seen == fresh.stats().seen && cache.positions({1, 1}) == fresh.positions({1, 1}) &&
                dense_copy(cache, {1, 1}) == dense_copy(fresh, {1, 1});
    for (std::size_t step = static_cast<std::size_t>(from); step < static_cast<std::size_t>(from) + 20; ++step)
      for (std::size_t layer = 0; layer < Small.layers; ++layer) {
        Outputs a(Small, 1), b(Small, 1);
        cache.decode(layer, text.tokens(step, 1), a.rows(0, 1));
        fresh.decode(layer, text.tokens(step, 1), b.rows(0, 1));
        same = same && naive::distance(a.values(), b.values()) < 2e-6;
      }
    return std::pair(exact, same);
  };
  CHECK(restored("full", 100, 50, 120) == std::pair(true, true));
  CHECK(restored("snapkv:budget=40,window=8", 100, 50, 120) == std::pair(true, true));
  CHECK(restored("quest:tokens=64,page=16,dense_layers=0", 100, 50, 120) == std::pair(true, true));
  CHECK(restored("streaming_llm:budget=200", 100, 50, 120) == std::pair(true, true));
  CHECK(restored("streaming_llm:budget=60", 100, 50, 120).first == false);
  CHECK(restored("h2o:budget=200", 100, 50, 120).first == false);
  CHECK(restored("kivi:residual=128,group=32", 100, 20, 110) == std::pair(true, true));
  CHECK(restored("kivi:residual=32,group=32", 100, 50, 120).first == false);
}

TEST_CASE("Truncating counts the tokens that are forgotten, whatever gaps their positions have") {
  const CacheShape shape{.head_dim = 16};
  const RandomTokens text(shape, 5, 20);
  const std::vector<Position> positions{0, 10, 20, 500, 90000000};
  KVCache cache(shape, Full{});
  Tokens tokens = text.tokens(0, 5);
  tokens.positions = positions;
  cache.prefill(0, tokens, {});
  CHECK(cache.truncate(15));
  CHECK(cache.stats().seen == 2);
  CHECK(cache.positions({0, 0}) == std::vector<Position>{0, 10});
  CHECK(cache.stats().bytes() < 100000);
}

TEST_CASE("A probe leaves no trace but what the policy observed") {
  for (const char* policy : BitingPolicies) {
    const RandomTokens text(Small, 400, 21);
    KVCache probed(Small, AnyPolicy::parse(policy)), twin(Small, AnyPolicy::parse(policy));
    run(probed, text, 200, 30, 200);
    run(twin, text, 200, 30, 200);
    for (std::size_t step = 230; step < 260; ++step)
      for (std::size_t layer = 0; layer < Small.layers; ++layer) {
        Outputs ignored(Small, 20), a(Small, 1), b(Small, 1);
        probed.probe(layer, text.tokens(300, 20), ignored.rows(0, 20), 0, 100);
        probed.probe(layer, text.tokens(320, 1), ignored.rows(0, 1), 0, 100);
        CHECK(probed.stats().seen == twin.stats().seen);
        probed.decode(layer, text.tokens(step, 1), a.rows(0, 1));
        twin.decode(layer, text.tokens(step, 1), b.rows(0, 1));
        INFO(policy << ", step " << step);
        REQUIRE(naive::distance(a.values(), b.values()) < 5e-6);
      }
    CHECK(probed.positions({1, 1}) == twin.positions({1, 1}));
  }
}

TEST_CASE("make_room shortens StreamingLLM's window before the tokens come") {
  KVCache cache(Small, StreamingLLM{.budget = 60, .when = When::make_room});
  const RandomTokens text(Small, 120, 22);
  feed_prompt(cache, text, 100, 100);
  CHECK(cache.positions({0, 0}).size() == 100);
  cache.make_room(20);
  for (std::uint32_t layer = 0; layer < 2; ++layer) {
    const std::vector<Position> left = cache.positions({layer, 1});
    CHECK(left.size() == 40);
    CHECK(left[3] == 3);
    CHECK(left[4] == 64);
  }
}
