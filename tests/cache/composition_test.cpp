#include "catch_shim.hpp"

#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/policies/h2o.hpp"
#include "kvc/policies/kivi.hpp"
#include "kvc/policies/snapkv.hpp"
#include "kvc/policies/streaming_llm.hpp"
#include "support/naive_cache.hpp"
#include "support/naive_policies.hpp"
#include "support/random_tokens.hpp"

// Policies and their compositions against the naive model: first evict slots, then seal the oldest dense ones.

using namespace kvc;
using support::Outputs;
using support::RandomTokens;

namespace {

using naive::heavy_hitters;
using naive::Keep;
using naive::positions_of;
using naive::streaming;

// f32 throughout, so that sealing a row again that was sealed before changes nothing but its last bits.
constexpr CacheOptions Exact{.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact};
constexpr KIVI Sealing{.bits = 4, .group = 16, .residual = 32, .metadata = Scalar::f32};
const CacheShape Small{.layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 16};

/// Compares one pass over every layer: outputs, kept positions, and the rows behind them.
template <class Policy>
void compare_pass(KVCache<Policy>& cache, naive::Cache& model, const Tokens& tokens, Event event, double tolerance) {
  const CacheShape& shape = cache.shape();
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
    Outputs out(shape, tokens.q.count);
    if (event == Event::decode)
      cache.decode(layer, tokens, out.rows(0, tokens.q.count));
    else
      cache.prefill(layer, tokens, out.rows(0, tokens.q.count), event == Event::prompt_end);
    REQUIRE(naive::distance(out.values(), model.pass(layer, tokens, event)) < tolerance);
    for (std::uint32_t h = 0; h < shape.kv_heads; ++h)
      REQUIRE(cache.positions({layer, h}) == positions_of(model.head(layer, h)));
  }
}

template <class Policy>
void compare_rows(const KVCache<Policy>& cache, const naive::Cache& model, double tolerance) {
  const CacheShape& shape = cache.shape();
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
    for (std::uint32_t h = 0; h < shape.kv_heads; ++h) {
      const naive::Head& head = model.head(layer, h);
      std::vector<float> keys(head.size() * shape.head_dim), values(head.size() * shape.values_dim());
      cache.gather({layer, h}, {keys.data(), head.size(), shape.head_dim},
                   {values.data(), head.size(), shape.values_dim()});
      std::vector<double> expected_keys, expected_values;
      for (const naive::Slot& slot : head) {
        expected_keys.insert(expected_keys.end(), slot.key.values.begin(), slot.key.values.end());
        expected_values.insert(expected_values.end(), slot.value.values.begin(), slot.value.values.end());
      }
      CHECK(naive::distance(keys, expected_keys) < tolerance);
      CHECK(naive::distance(values, expected_values) < tolerance);
    }
}

template <class Policy>
void compare(const Policy& policy, const Streams& streams, Keep keep, std::size_t prompt, std::size_t steps,
             double tolerance = 3e-5) {
  KVCache cache(Small, policy, Exact);
  naive::Cache model(Small, streams, Scalar::f32);
  model.keep = keep;
  const RandomTokens text(Small, prompt + steps, 41);
  compare_pass(cache, model, text.tokens(0, prompt), Event::prompt_end, tolerance);
  for (std::size_t t = prompt; t < prompt + steps; ++t) {
    INFO("token " << t);
    compare_pass(cache, model, text.tokens(t, 1), Event::decode, tolerance);
  }
  compare_rows(cache, model, tolerance);
}

}  // namespace

TEST_CASE("KIVI alone equals the model: sealed keys per channel, sealed values per token, the newest dense") {
  compare(Sealing, Sealing.quantize({}, {}), nullptr, 150, 300);
  compare(Sealing, Sealing.quantize({}, {}), nullptr, 1, 100);
}

TEST_CASE("H2O alone keeps the slots that the model keeps") {
  compare(H2O{.budget = 60}, {}, heavy_hitters(60), 150, 300);
}

TEST_CASE("H2O | KIVI equals evicting by slots and then sealing the oldest dense ones, over 300 steps") {
  compare(H2O{.budget = 100} | Sealing, Sealing.quantize({}, {}), heavy_hitters(100), 150, 300, 2e-4);
}

TEST_CASE("H2O | KIVI with fewer slots than the residual never seals keys") {
  compare(H2O{.budget = 20} | Sealing, Sealing.quantize({}, {}), heavy_hitters(20), 150, 300, 2e-4);
}

TEST_CASE("StreamingLLM | KIVI equals evicting by slots and then sealing the oldest dense ones, over 300 steps") {
  compare(StreamingLLM{.budget = 100} | Sealing, Sealing.quantize({}, {}), streaming(100), 150, 300, 2e-4);
}

TEST_CASE("SnapKV | KIVI equals evicting once by votes and then sealing what is dense, over 300 steps") {
  compare(SnapKV{.budget = 90, .window = 16} | Sealing, Sealing.quantize({}, {}), naive::votes(90, 16), 200, 300);
}

namespace {

/// A thousand random steps of a cache, of its forks, and of their models.
template <class Policy>
void walk(const Policy& policy, const Streams& streams, Keep keep, bool truncates, unsigned seed, double tolerance) {
  struct Pair {
    std::unique_ptr<KVCache<Policy>> cache;
    naive::Cache model;
    std::size_t seen = 0;
  };
  const RandomTokens text(Small, 4000, seed);
  support::Dice dice(seed);
  std::vector<Pair> pairs;
  pairs.push_back({std::make_unique<KVCache<Policy>>(Small, policy, Exact), naive::Cache(Small, streams, Scalar::f32)});
  pairs[0].model.keep = keep;
  const auto feed = [&](Pair& pair, std::size_t count, Event event) {
    compare_pass(*pair.cache, pair.model, text.tokens(dice(3900), count), event, tolerance);
    pair.seen += count;
  };
  bool in_prompt = false;
  for (int step = 0; step < 1000; ++step) {
    const std::size_t chosen = in_prompt ? pairs.size() - 1 : dice(pairs.size());
    Pair& pair = pairs[chosen];
    const std::size_t what = dice(100);
    INFO("step " << step << ", kind " << what);
    if (in_prompt) {
      in_prompt = what < 30;
      feed(pair, 1 + dice(20), in_prompt ? Event::prompt_chunk : Event::prompt_end);
    } else if (pair.seen > 400) {
      pairs.erase(pairs.begin() + std::ptrdiff_t(chosen));
      pairs.push_back(
          {std::make_unique<KVCache<Policy>>(Small, policy, Exact), naive::Cache(Small, streams, Scalar::f32)});
      pairs.back().model.keep = keep;
      in_prompt = true;
    } else if (what < 80 || pair.seen == 0) {
      feed(pair, 1, Event::decode);
    } else if (what < 85) {
      feed(pair, 1 + dice(5), Event::decode);
    } else if (what < 88) {
      feed(pair, 1 + dice(40), Event::prompt_end);
    } else if (what < 91 && pairs.size() < 3) {
      pairs.push_back(
          {std::unique_ptr<KVCache<Policy>>(new KVCache<Policy>(pair.cache->fork())), pair.model, pair.seen});
    } else if (what < 95 && truncates) {
      const Position from = pair.model.next_position(0) - static_cast<Position>(dice(6));
      static_cast<void>(pair.cache->truncate(std::max(from, 0)));
      pair.model.truncate(std::max(from, 0));
      for (std::uint32_t h = 0; h < 2; ++h)
        REQUIRE(pair.cache->positions({1, h}) == positions_of(pair.model.head(1, h)));
    } else {
      const auto tokens = text.tokens(dice(3900), 1);
      Outputs out(Small, 1);
      pair.cache->attend(1, tokens.q, out.rows(0, 1));
      std::vector<double> expected;
      for (std::size_t q = 0; q < Small.query_heads; ++q) {
        const naive::Head& head = pair.model.head(1, q / 3);
        const auto answer = pair.model.attend_one(head, pair.model.query(tokens.q[0], q), head.size(), 0);
        expected.insert(expected.end(), answer.out.begin(), answer.out.end());
      }
      REQUIRE(naive::distance(out.values(), expected) < tolerance);
    }
  }
  for (const Pair& pair : pairs) compare_rows(*pair.cache, pair.model, tolerance);
}

}  // namespace

TEST_CASE("A thousand random steps of Full equal the model") {
  walk(Full{}, {}, nullptr, true, 51, 3e-5);
}
TEST_CASE("A thousand random steps of StreamingLLM equal the model") {
  walk(StreamingLLM{.budget = 40}, {}, streaming(40), true, 52, 3e-5);
}
TEST_CASE("A thousand random steps of H2O equal the model") {
  walk(H2O{.budget = 40}, {}, heavy_hitters(40), true, 53, 5e-5);
}
TEST_CASE("A thousand random steps of KIVI equal the model") {
  walk(Sealing, Sealing.quantize({}, {}), nullptr, false, 54, 1e-4);
}
TEST_CASE("A thousand random steps of H2O | KIVI equal the model") {
  walk(H2O{.budget = 90} | Sealing, Sealing.quantize({}, {}), heavy_hitters(90), false, 55, 5e-4);
}
