#include "catch_shim.hpp"

#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/policies/streaming_llm.hpp"
#include "support/naive_cache.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;
using support::Outputs;
using support::RandomTokens;

namespace {

constexpr CacheOptions Exact{.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact};

/// Feeds a prompt and then single tokens to a cache and to the model, and returns the largest difference.
template <class Policy>
double distance_to_oracle(const CacheShape& shape, const Policy& policy, naive::Cache& model, std::size_t prompt,
                          std::size_t steps, const CacheOptions& options = Exact) {
  const RandomTokens text(shape, prompt + steps, 1);
  KVCache cache(shape, policy, options);
  double worst = 0;
  for (std::size_t layer = 0; layer < shape.layers; ++layer) {
    Outputs out(shape, prompt);
    cache.prefill(layer, text.tokens(0, prompt), out.rows(0, prompt));
    worst =
        std::max(worst, naive::distance(out.values(), model.pass(layer, text.tokens(0, prompt), Event::prompt_end)));
  }
  for (std::size_t step = prompt; step < prompt + steps; ++step)
    for (std::size_t layer = 0; layer < shape.layers; ++layer) {
      Outputs out(shape, 1);
      cache.decode(layer, text.tokens(step, 1), out.rows(0, 1));
      worst = std::max(worst, naive::distance(out.values(), model.pass(layer, text.tokens(step, 1), Event::decode)));
    }
  return worst;
}

double distance_of_full(const CacheShape& shape, std::size_t prompt = 300, std::size_t steps = 20,
                        Scalar dense = Scalar::f32) {
  naive::Cache model(shape, {}, dense);
  return distance_to_oracle(shape, Full{}, model, prompt, steps, {.dense = {dense}});
}

/// StreamingLLM's rule on the model.
naive::Cache::Keep sinks_and_recent(std::size_t sinks, std::size_t budget) {
  return [=](const naive::Head& head, Event) {
    std::vector<bool> stays(head.size(), true);
    for (std::size_t slot = sinks; slot + (budget - sinks) < head.size(); ++slot) stays[slot] = false;
    return stays;
  };
}

}  // namespace

TEST_CASE("Prefill and decode equal causal attention in double precision, for every group size") {
  for (std::size_t group : {1u, 2u, 3u, 4u, 5u, 8u, 16u}) {
    INFO("group " << group);
    CHECK(distance_of_full({.layers = 2, .query_heads = 2 * group, .kv_heads = 2, .head_dim = 16}, 70, 5) < 2e-5);
  }
  CHECK(distance_of_full({.query_heads = 3, .kv_heads = 1, .head_dim = 64}) < 2e-5);
}

TEST_CASE("Every head dimension that is a multiple of 8 works") {
  for (std::size_t dim : {8u, 16u, 24u, 40u, 64u, 72u, 80u, 96u, 128u, 256u}) {
    INFO("head_dim " << dim);
    CHECK(distance_of_full({.query_heads = 2, .kv_heads = 1, .head_dim = dim}, 40, 3) < 2e-5);
  }
}

TEST_CASE("Rows kept in f16 and bf16 are rounded, and nothing else is") {
  const CacheShape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 32};
  CHECK(distance_of_full(shape, 300, 20, Scalar::f16) < 2e-5);
  CHECK(distance_of_full(shape, 300, 20, Scalar::bf16) < 2e-5);
}

TEST_CASE("Values may have another dimension than keys") {
  CHECK(distance_of_full({.query_heads = 4, .kv_heads = 2, .head_dim = 24, .value_dim = 40}) < 2e-5);
  CHECK(distance_of_full({.query_heads = 4, .kv_heads = 2, .head_dim = 64, .value_dim = 8}) < 2e-5);
}

TEST_CASE("A logit scale replaces 1/sqrt(head_dim)") {
  CHECK(distance_of_full({.query_heads = 2, .kv_heads = 1, .head_dim = 16, .scale = 0.05f}) < 2e-5);
}

TEST_CASE("A soft cap bends the logits") {
  CHECK(distance_of_full({.query_heads = 2, .kv_heads = 1, .head_dim = 16, .softcap = 1.5f}) < 2e-5);
}

TEST_CASE("After evictions queries see exactly the slots that are left") {
  const CacheShape shape{.layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 16};
  naive::Cache model(shape, {}, Scalar::f32);
  model.keep = sinks_and_recent(4, 50);
  CHECK(distance_to_oracle(shape, StreamingLLM{.budget = 50}, model, 300, 150) < 2e-5);
}

TEST_CASE("In-cache positions turn keys from their place in the text to their slot") {
  for (bool interleaved : {false, true})
    for (std::size_t rotated : {16u, 8u}) {
      const CacheShape shape{
          .query_heads = 4, .kv_heads = 2, .head_dim = 16, .rotary = Rotary::standard(rotated, 10000, interleaved)};
      naive::Cache model(shape, {}, Scalar::f32);
      model.in_cache = true;
      model.keep = sinks_and_recent(4, 40);
      INFO("interleaved " << interleaved << ", rotated " << rotated);
      CHECK(distance_to_oracle(shape, StreamingLLM{.budget = 40, .positions = Positions::in_cache}, model, 100, 90) <
            1e-4);
    }
}

TEST_CASE("In-cache positions differ from original ones once something was evicted") {
  const CacheShape shape{.query_heads = 4, .kv_heads = 2, .head_dim = 16, .rotary = Rotary::standard(16)};
  naive::Cache model(shape, {}, Scalar::f32);
  model.keep = sinks_and_recent(4, 40);
  CHECK(distance_to_oracle(shape, StreamingLLM{.budget = 40, .positions = Positions::in_cache}, model, 100, 90) > 1e-2);
}

TEST_CASE("A second prompt after evictions attends to what is left and to itself, at in-cache positions too") {
  for (Positions positions : {Positions::original, Positions::in_cache}) {
    const CacheShape shape{.query_heads = 4, .kv_heads = 2, .head_dim = 16, .rotary = Rotary::standard(16)};
    const RandomTokens text(shape, 300, 3);
    KVCache cache(shape, StreamingLLM{.budget = 40, .positions = positions}, Exact);
    naive::Cache model(shape, {}, Scalar::f32);
    model.in_cache = positions == Positions::in_cache;
    model.keep = sinks_and_recent(4, 40);
    std::size_t first = 0;
    for (std::size_t count : {100u, 1u, 1u, 80u, 1u, 3u, 1u, 50u}) {
      Outputs out(shape, count);
      cache.prefill(0, text.tokens(first, count), out.rows(0, count));
      CHECK(naive::distance(out.values(), model.pass(0, text.tokens(first, count), Event::prompt_end)) < 1e-4);
      first += count;
    }
  }
}

TEST_CASE("Explicit positions count for the rotary embedding and survive eviction") {
  const CacheShape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 16, .rotary = Rotary::standard(16)};
  const RandomTokens text(shape, 30, 4);
  std::vector<Position> positions;
  for (int t = 0; t < 30; ++t) positions.push_back(3 * t + 2);
  KVCache cache(shape, StreamingLLM{.budget = 10, .positions = Positions::in_cache}, Exact);
  naive::Cache model(shape, {}, Scalar::f32);
  model.in_cache = true;
  model.keep = sinks_and_recent(4, 10);
  for (auto [first, count] : {std::pair<std::size_t, std::size_t>{0, 20}, {20, 1}, {21, 1}, {22, 8}}) {
    Tokens tokens = text.tokens(first, count);
    tokens.positions = std::span<const Position>(positions).subspan(first, count);
    Outputs out(shape, count);
    cache.decode(0, tokens, out.rows(0, count));
    CHECK(naive::distance(out.values(), model.pass(0, tokens, Event::decode)) < 1e-4);
  }
  CHECK(cache.positions({0, 0}) == std::vector<Position>{2, 5, 8, 11, 74, 77, 80, 83, 86, 89});
}

TEST_CASE("attend() reads every slot, stores nothing and tells the log-sum-exp") {
  const CacheShape shape{.query_heads = 6, .kv_heads = 2, .head_dim = 16, .value_dim = 24, .softcap = 5};
  const RandomTokens text(shape, 120, 5);
  KVCache cache(shape, StreamingLLM{.budget = 60}, Exact);
  naive::Cache model(shape, {}, Scalar::f32);
  model.keep = sinks_and_recent(4, 60);
  Outputs ignored(shape, 100);
  cache.prefill(0, text.tokens(0, 100), ignored.rows(0, 100));
  model.pass(0, text.tokens(0, 100), Event::prompt_end);
  const Stats before = cache.stats();
  const ConstRows queries = text.tokens(100, 20).q;
  Outputs out(shape, 20);
  std::vector<float> lse(20 * 6);
  cache.attend(0, queries, out.rows(0, 20), lse);
  std::vector<double> expected, expected_lse;
  for (std::size_t t = 0; t < 20; ++t)
    for (std::size_t q = 0; q < 6; ++q) {
      const auto answer = model.attend_one(model.head(0, q / 3), model.query(queries[t], q), 60, 0);
      expected.insert(expected.end(), answer.out.begin(), answer.out.end());
      expected_lse.push_back(answer.lse);
    }
  CHECK(naive::distance(out.values(), expected) < 2e-5);
  CHECK(naive::distance(lse, expected_lse) < 2e-5);
  CHECK(cache.stats().bytes() == before.bytes());
  CHECK(cache.stats().seen == 100);
}

TEST_CASE("Attention over two halves of a context merges to attention over the whole by log-sum-exp") {
  const CacheShape shape{.query_heads = 4, .kv_heads = 2, .head_dim = 32};
  const RandomTokens text(shape, 601, 6);
  KVCache left(shape, Full{}, Exact), right(shape, Full{}, Exact), whole(shape, Full{}, Exact);
  left.prefill(0, text.tokens(0, 350), {});
  right.prefill(0, text.tokens(350, 250), {});
  whole.prefill(0, text.tokens(0, 600), {});
  const ConstRows query = text.tokens(600, 1).q;
  Outputs a(shape, 1), b(shape, 1), together(shape, 1);
  std::vector<float> a_lse(4), b_lse(4), lse(4);
  left.attend(0, query, a.rows(0, 1), a_lse);
  right.attend(0, query, b.rows(0, 1), b_lse);
  whole.attend(0, query, together.rows(0, 1), lse);
  std::vector<double> merged, merged_lse;
  for (std::size_t q = 0; q < 4; ++q) {
    const double all = std::log(std::exp(double(a_lse[q])) + std::exp(double(b_lse[q])));
    merged_lse.push_back(all);
    for (std::size_t c = 0; c < 32; ++c)
      merged.push_back(std::exp(double(a_lse[q]) - all) * double(a.values()[q * 32 + c]) +
                       std::exp(double(b_lse[q]) - all) * double(b.values()[q * 32 + c]));
  }
  CHECK(naive::distance(together.values(), merged) < 2e-6);
  CHECK(naive::distance(lse, merged_lse) < 2e-6);
}

TEST_CASE("attend() on an empty cache answers zeros and minus infinity") {
  const CacheShape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 16};
  const RandomTokens text(shape, 1, 7);
  const KVCache cache(shape, Full{});
  Outputs out(shape, 1);
  std::vector<float> lse(2, 1.0f);
  cache.attend(0, text.tokens(0, 1).q, out.rows(0, 1), lse);
  CHECK(naive::distance(out.values(), std::vector<double>(32, 0.0)) == 0);
  CHECK(lse[0] == -std::numeric_limits<float>::infinity());
}

TEST_CASE("attend() places its queries behind the last slot at in-cache positions") {
  const CacheShape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 16, .rotary = Rotary::standard(16)};
  const RandomTokens text(shape, 101, 8);
  KVCache cache(shape, StreamingLLM{.budget = 30, .positions = Positions::in_cache}, Exact);
  naive::Cache model(shape, {}, Scalar::f32);
  model.in_cache = true;
  model.keep = sinks_and_recent(4, 30);
  cache.prefill(0, text.tokens(0, 100), {});
  model.pass(0, text.tokens(0, 100), Event::prompt_end);
  Outputs out(shape, 1);
  cache.attend(0, text.tokens(100, 1).q, out.rows(0, 1));
  std::vector<double> expected;
  for (std::size_t q = 0; q < 2; ++q) {
    const auto answer = model.attend_one(model.head(0, 0), model.query(text.tokens(100, 1).q[0], q), 30, 30.0 - 100.0);
    expected.insert(expected.end(), answer.out.begin(), answer.out.end());
  }
  CHECK(naive::distance(out.values(), expected) < 1e-4);
}

TEST_CASE("Heads longer than what one thread takes equal the oracle at every length around the cut") {
  const CacheShape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 8};
  const RandomTokens text(shape, 8200, 9);
  for (std::size_t before : {4094u, 8190u}) {
    KVCache cache(shape, Full{}, Exact);
    naive::Cache model(shape, {}, Scalar::f32);
    cache.prefill(0, text.tokens(0, before), {});
    model.append(0, text.tokens(0, before));
    for (std::size_t t = before; t < before + 5; ++t) {
      Outputs out(shape, 1);
      cache.decode(0, text.tokens(t, 1), out.rows(0, 1));
      INFO("token " << t);
      CHECK(naive::distance(out.values(), model.pass(0, text.tokens(t, 1), Event::decode)) < 5e-6);
    }
  }
}
