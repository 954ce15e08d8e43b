#include "catch_shim.hpp"

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <vector>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/policies/kivi.hpp"
#include "kvc/policies/streaming_llm.hpp"
#include "support/naive_cache.hpp"
#include "support/naive_policies.hpp"
#include "support/random_tokens.hpp"

// Sliding windows and logits without values, against attention in double precision.

using namespace kvc;
using support::Outputs;
using support::RandomTokens;

namespace {

constexpr CacheOptions Exact{.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact};

CacheShape shape_of(std::initializer_list<Position> windows, std::size_t group = 3) {
  CacheShape shape{.layers = windows.size(), .query_heads = 2 * group, .kv_heads = 2, .head_dim = 16};
  for (const Position window : windows) shape.each_layer.push_back({.window = window});
  return shape;
}

/// Sink logits of all sizes: below, among and above the others.
CacheShape with_sinks(CacheShape shape) {
  for (std::size_t layer = 0; layer < shape.layers; ++layer)
    for (std::size_t head = 0; head < shape.query_heads; ++head)
      shape.each_layer[layer].sink_logits.push_back(static_cast<float>(3 * int(head) - 6 + int(layer)));
  return shape;
}

/// A cache and the model of it, which are fed the same.
template <class Policy>
class Pair {
 public:
  Pair(const CacheShape& shape, const Policy& policy, unsigned seed = 1)
      : text_(shape, 3000, seed), cache(shape, policy, Exact), model(shape, {}, Scalar::f32) {}

  void feed(std::size_t count, Event event, Position gap = 0) {
    std::vector<Position> positions;
    for (std::size_t t = 0; t < count; ++t)
      positions.push_back(cache.next_position() + gap + static_cast<Position>(t) * (1 + gap));
    for (std::size_t layer = 0; layer < cache.shape().layers; ++layer) {
      Tokens tokens = text_.tokens(at_, count);
      if (gap != 0) tokens.positions = positions;
      Outputs out(cache.shape(), count);
      std::vector<float> lse(count * cache.shape().query_heads);
      if (event == Event::decode)
        cache.decode(layer, tokens, out.rows(0, count), lse);
      else
        cache.prefill(layer, tokens, out.rows(0, count), event == Event::prompt_end, lse);
      note(out, model.pass(layer, tokens, event));
      note_lse(lse, layer, tokens.q);
    }
    at_ += count;
  }
  void draft(std::size_t count) {
    for (std::size_t layer = 0; layer < cache.shape().layers; ++layer) {
      Outputs out(cache.shape(), count);
      cache.draft(layer, text_.tokens(at_, count), out.rows(0, count));
      note(out, model.draft(layer, text_.tokens(at_, count)));
    }
    at_ += count;
  }
  void accept(std::size_t count) {
    cache.accept(count);
    for (std::size_t layer = 0; layer < cache.shape().layers; ++layer) {
      model.accept(layer, count);
      if (count != 0) model.act(layer, Event::decode);
    }
  }
  void attend() {
    for (std::size_t layer = 0; layer < cache.shape().layers; ++layer) {
      if (model.head(layer, 0).empty()) continue;  // a window of one token
      Outputs out(cache.shape(), 1);
      std::vector<float> lse(cache.shape().query_heads);
      const Tokens one = text_.tokens(at_, 1);
      cache.attend(layer, one.q, out.rows(0, 1), lse);
      // What the next token would see besides itself.
      std::vector<double> expected, expected_lse;
      for (std::size_t q = 0; q < lse.size(); ++q) {
        const naive::Head& head = model.head(layer, q / cache.shape().group());
        const auto sinks = cache.shape().sink_logits(layer);
        const auto answer = model.attend_one(head, model.query(one.q[0], q), head.size(), 0, {},
                                             sinks.empty() ? -HUGE_VAL : double(sinks[q]));
        expected.insert(expected.end(), answer.out.begin(), answer.out.end());
        expected_lse.push_back(answer.lse);
      }
      note(out, expected);
      worst_lse = std::max(worst_lse, naive::distance(lse, expected_lse));
    }
  }
  void check() const {
    CHECK(worst < 2e-5);
    CHECK(worst_lse < 2e-5);
    for (std::uint32_t layer = 0; layer < cache.shape().layers; ++layer)
      for (std::uint32_t head = 0; head < 2; ++head)
        CHECK(cache.positions({layer, head}) == naive::positions_of(model.head(layer, head)));
  }

 private:
  void note(const Outputs& out, const std::vector<double>& expected) {
    worst = std::max(worst, naive::distance(out.values(), expected));
  }
  /// The logarithm of what the model divided by: of its first token it knows the logit of the newest slot.
  void note_lse(const std::vector<float>& lse, std::size_t layer, ConstRows queries) {
    const std::size_t group = cache.shape().group();
    for (std::size_t t = 0; t < queries.count; ++t)
      for (std::size_t q = 0; q < cache.shape().query_heads; ++q) {
        const naive::Row& probabilities = model.attention(layer, q / group)[t * group + q % group];
        const std::size_t own = probabilities.size() - queries.count + t;
        if (probabilities[own] < 1e-9) continue;
        const Tokens token = text_.tokens(at_ + t, 1);
        double logit = 0;
        for (std::size_t c = 0; c < 16; ++c)
          logit += double(queries[t][q * 16 + c]) * double(token.k[0][q / group * 16 + c]);
        const double expected = logit / 4 - std::log(probabilities[own]);
        worst_lse = std::max(worst_lse, std::fabs(double(lse[t * cache.shape().query_heads + q]) - expected));
      }
  }

  RandomTokens text_;
  std::size_t at_ = 0;

 public:
  KVCache<Policy> cache;
  naive::Cache model;
  double worst = 0, worst_lse = 0;
};

/// The last `count` positions before `end`.
std::vector<Position> newest(Position count, Position end) {
  std::vector<Position> positions;
  for (Position position = std::max<Position>(0, end - count); position < end; ++position)
    positions.push_back(position);
  return positions;
}

}  // namespace

TEST_CASE("Queries of prompts and generated tokens see the tokens of their windows and no others") {
  for (const Position window : {1, 2, 16, 100, 255, 256, 257, 600, 5000}) {
    INFO("window " << window);
    Pair pair(shape_of({window, 0}), Full{});
    pair.feed(600, Event::prompt_end);
    for (int step = 0; step < 40; ++step) pair.feed(1, Event::decode);
    pair.feed(5, Event::decode);
    pair.feed(70, Event::prompt_chunk);
    pair.feed(1, Event::prompt_chunk);
    pair.feed(300, Event::prompt_end);
    pair.feed(1, Event::decode);
    pair.attend();
    pair.check();
  }
}

TEST_CASE("Windows are of positions, also where positions have gaps") {
  for (const Position gap : {1, 4, 50}) {
    INFO("gaps of " << gap);
    Pair pair(shape_of({40, 7}), Full{});
    pair.feed(90, Event::prompt_end, gap);
    for (int step = 0; step < 30; ++step) pair.feed(1, Event::decode, step % 3 == 0 ? gap : 0);
    pair.feed(20, Event::prompt_chunk, gap);
    pair.feed(20, Event::prompt_end, gap);
    pair.feed(1, Event::decode, 1000);
    pair.check();
  }
}

TEST_CASE("A policy in a layer with a window chooses among the tokens of the window") {
  // The policy's sinks are the oldest tokens that the window still holds.
  Pair pair(shape_of({50, 0}), StreamingLLM{.budget = 30});
  pair.model.keep = [](const naive::Head& head, Event) {
    std::vector<bool> stays(head.size(), true);
    for (std::size_t slot = 4; slot + 26 < head.size(); ++slot) stays[slot] = false;
    return stays;
  };
  pair.feed(200, Event::prompt_end);
  for (int step = 0; step < 120; ++step) pair.feed(1, Event::decode);
  pair.check();
}

TEST_CASE("Sink logits take part in every softmax and add no value") {
  for (const Position window : {0, 30}) {
    Pair pair(with_sinks(shape_of({window, 300})), Full{});
    pair.feed(400, Event::prompt_end);
    for (int step = 0; step < 40; ++step) pair.feed(1, Event::decode);
    pair.feed(4, Event::decode);
    pair.draft(3);
    pair.accept(1);
    pair.attend();
    pair.check();
  }
}

TEST_CASE("Heads that several threads share have their sink logit once") {
  CacheShape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 8};
  shape.each_layer = {{.sink_logits = {4, 12}}};
  const RandomTokens text(shape, 4200, 9);
  KVCache cache(shape, Full{}, Exact);
  naive::Cache model(shape, {}, Scalar::f32);
  cache.prefill(0, text.tokens(0, 4199), {});
  model.append(0, text.tokens(0, 4199));
  Outputs out(shape, 1);
  cache.decode(0, text.tokens(4199, 1), out.rows(0, 1));
  CHECK(naive::distance(out.values(), model.pass(0, text.tokens(4199, 1), Event::decode)) < 5e-6);
}

TEST_CASE("A sink logit with nothing beside it leaves zeros") {
  CacheShape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 16};
  shape.each_layer = {{.sink_logits = {1.5f, -2}}};
  const KVCache cache(shape, Full{});
  const RandomTokens text(shape, 1, 7);
  Outputs out(shape, 1);
  std::vector<float> lse(2);
  cache.attend(0, text.tokens(0, 1).q, out.rows(0, 1), lse);
  CHECK(out.values() == std::vector<float>(32, 0.0f));
  CHECK(lse == std::vector<float>{1.5f, -2});
}

TEST_CASE("Drafted tokens see their windows, and nothing leaves a window before they are accepted") {
  Pair pair(shape_of({20, 64}), Full{});
  pair.feed(100, Event::prompt_end);
  for (const std::size_t accepted : {3u, 0u, 5u, 1u, 4u, 0u, 2u}) {
    pair.draft(2);
    pair.draft(1);
    pair.draft(2);
    pair.accept(accepted);
    pair.check();
  }
  for (int step = 0; step < 60; ++step) pair.feed(1, Event::decode);
  pair.check();
}

TEST_CASE("What leaves a window is let go of at once, in bytes too") {
  const CacheShape shape = shape_of({512, 0});
  const RandomTokens text(shape, 6000, 3);
  KVCache cache(shape, Full{});
  const std::size_t row = 16 * 2;  // f16
  // An open prompt keeps whole blocks of 256 rows; a prompt that has ended, and generated tokens, keep what they need.
  const auto most = [&](std::size_t rows) { return 2 * 2 * rows * row; };
  const auto held = [&] { return cache.stats(0).payload + cache.stats(0).slack; };
  for (std::size_t at = 0; at < 4000; at += 100)
    for (std::size_t layer = 0; layer < 2; ++layer) {
      cache.prefill(layer, text.tokens(at, 100), {}, at == 3900);
      CHECK(cache.positions({0, 1}) == newest(511, static_cast<Position>(at) + 100));
      CHECK(held() <= most(at == 3900 ? 512 : 512 + 100 + 256 + 16));
    }
  Outputs out(shape, 1);
  for (std::size_t at = 4000; at < 5000; ++at)
    for (std::size_t layer = 0; layer < 2; ++layer) cache.decode(layer, text.tokens(at, 1), out.rows(0, 1));
  CHECK(cache.positions({0, 1}) == newest(511, 5000));
  CHECK(held() <= most(512));
  CHECK(cache.stats(HeadId{1, 0}).slots == 5000);
}
