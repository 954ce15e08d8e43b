// RazorAttention in a cache: its compensation token through storage, sealing and kernels.
#include <kvc/cache/kv_cache.hpp>
#include <kvc/policies/full.hpp>
#include <kvc/policies/kivi.hpp>
#include <kvc/policy/pipeline.hpp>
#include <kvc/policies/razor_attention.hpp>

#include <algorithm>
#include <cmath>

#include "catch_shim.hpp"
#include "support/naive_cache.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;
using support::Outputs;
using support::RandomTokens;

namespace {

const CacheShape Small{.query_heads = 6, .kv_heads = 2, .head_dim = 32};
const CacheOptions Exact{.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact};
constexpr std::size_t Sinks = 4, Local = 40;

/// Head 0 keeps everything.
const RazorAttention Razor{.heads = HeadTable(1, 2, {1, 0}), .sinks = Sinks, .local = Local, .divisor = 0};

/// RazorAttention in the plainest form, as part of the naive cache.
class Oracle {
 public:
  Oracle(const Streams& streams, Scalar dense) : model_(Small, streams, dense), dense_(dense) {}

  std::vector<double> pass(const Tokens& tokens, Event event) {
    model_.append(0, tokens);
    const std::vector<double> out = model_.attend_appended(0, tokens.q);
    if (event != Event::prompt_chunk) compensate();
    model_.act(0, event);
    return out;
  }
  const naive::Head& head(std::size_t h) const { return model_.head(0, h); }

 private:
  void compensate() {
    naive::Head& slots = model_.head(0, 1);
    if (slots.size() <= Sinks + 1 + Local) return;
    const std::size_t end = slots.size() - Local;
    std::vector<bool> stays(slots.size(), true);
    for (std::size_t slot = Sinks; slot < end; ++slot) {
      stays[slot] = slot == Sinks;
      if (slot == Sinks && tokens_ > 0) continue;
      add(keys_, slots[slot].key.values);
      add(values_, slots[slot].value.values);
      ++tokens_;
    }
    slots[Sinks].key = mean(keys_);
    slots[Sinks].value = mean(values_);
    slots[Sinks].multiplicity = tokens_;
    model_.evict(0, 1, stays);
  }
  static void add(naive::Row& sums, const naive::Row& row) {
    sums.resize(row.size());
    for (std::size_t c = 0; c < row.size(); ++c) sums[c] += row[c];
  }
  naive::Stored mean(const naive::Row& sums) const {
    naive::Stored stored;
    for (const double sum : sums) stored.values.push_back(naive::rounded(dense_, sum / tokens_));
    return stored;
  }

  naive::Cache model_;
  Scalar dense_;
  naive::Row keys_, values_;
  double tokens_ = 0;
};

/// A prompt of 150 tokens, 200 steps, another prompt in two parts, 50 steps: every output is the oracle's.
template <class Policy>
void check_against_oracle(const Policy& policy, const Streams& streams, Scalar dense, double tolerance) {
  KVCache cache(Small, policy, CacheOptions{.dense = {dense}, .arithmetic = Arithmetic::exact});
  Oracle oracle(streams, dense);
  const RandomTokens text(Small, 460, 51);
  std::size_t at = 0;
  const auto pass = [&](std::size_t count, Event event) {
    Outputs out(Small, count);
    if (event == Event::decode)
      cache.decode(0, text.tokens(at, count), out.rows(0, count));
    else
      cache.prefill(0, text.tokens(at, count), out.rows(0, count), event == Event::prompt_end);
    INFO("token " << at);
    REQUIRE(naive::distance(out.values(), oracle.pass(text.tokens(at, count), event)) < tolerance);
    at += count;
  };
  pass(150, Event::prompt_end);
  for (int step = 0; step < 200; ++step) pass(1, Event::decode);
  pass(37, Event::prompt_chunk);
  pass(23, Event::prompt_end);
  for (int step = 0; step < 50; ++step) pass(1, Event::decode);
  CHECK(cache.positions({0, 0}).size() == 460);
  CHECK(cache.positions({0, 1}).size() == Sinks + 1 + Local);
  CHECK(oracle.head(1)[Sinks].multiplicity == 460 - Sinks - Local);
}

/// The rows of one head.
struct Gathered {
  std::vector<float> keys, values;
};
Gathered gathered(const CacheCore& cache, HeadId id) {
  const std::size_t slots = cache.positions(id).size(), dim = cache.shape().head_dim;
  Gathered rows{std::vector<float>(slots * dim), std::vector<float>(slots * dim)};
  cache.gather(id, {rows.keys.data(), slots, dim}, {rows.values.data(), slots, dim});
  return rows;
}

std::vector<float> probe(const CacheCore& cache, const RandomTokens& text, std::size_t token) {
  Outputs out(Small, 1);
  cache.attend(0, text.tokens(token, 1).q, out.rows(0, 1));
  return out.values();
}

}  // namespace

TEST_CASE("RazorAttention computes the oracle's attention over prompts and hundreds of steps") {
  check_against_oracle(Razor, {}, Scalar::f32, 3e-5);
  check_against_oracle(Razor, {}, Scalar::f16, 1e-3);
}

TEST_CASE("RazorAttention behind KIVI is the oracle's composition, its compensation token spared or not") {
  for (const std::size_t spared : {Sinks + 1, std::size_t{0}})
    for (const unsigned bits : {8u, 4u}) {
      const KIVI kivi{.bits = bits, .group = 16, .residual = 32, .metadata = Scalar::f32, .sinks = spared};
      INFO("bits " << bits << ", sinks " << spared);
      check_against_oracle(Razor | kivi, kivi.quantize({}, {}), Scalar::f32, 2e-4);
    }
}

TEST_CASE("Where the keys that went are equal, RazorAttention is exact") {
  // Tokens from the sinks to the window share one key; their values differ.
  const std::size_t tokens = 200;
  const RandomTokens text(Small, tokens + 1, 52);
  const Tokens given = text.tokens(0, tokens);
  std::vector<float> keys;
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::size_t from = t >= Sinks && t < tokens - Local ? Sinks : t;
    keys.insert(keys.end(), given.k[from].begin(), given.k[from].end());
  }
  const Tokens equal{.q = given.q, .k = {keys.data(), tokens, given.k.dim}, .v = given.v};
  KVCache razor(Small, Razor, Exact);
  KVCache full(Small, Full{}, Exact);
  for (CacheCore* cache : {static_cast<CacheCore*>(&razor), static_cast<CacheCore*>(&full)})
    cache->prefill(0, equal, {});
  CHECK(razor.positions({0, 1}).size() == Sinks + 1 + Local);
  CHECK(naive::distance(probe(razor, text, tokens), probe(full, text, tokens)) < 1e-5);
}

TEST_CASE("Half-precision rows round RazorAttention's mean once, however many steps it took") {
  KVCache cache(Small, Razor, CacheOptions{.dense = {Scalar::f16}});
  const RandomTokens text(Small, 500, 53);
  for (std::size_t t = 0; t < 500; ++t) {
    Outputs out(Small, 1);
    cache.decode(0, text.tokens(t, 1), out.rows(0, 1));
  }
  const Gathered rows = gathered(cache, {0, 1});
  for (std::size_t c = 0; c < 32; ++c) {
    double sum = 0;
    for (std::size_t t = Sinks; t < 500 - Local; ++t)
      sum += naive::rounded(Scalar::f16, double(text.tokens(t, 1).k[0][32 + c]));
    CHECK(double(rows.keys[Sinks * 32 + c]) == naive::rounded(Scalar::f16, sum / (500 - Sinks - Local)));
  }
}

TEST_CASE("A prompt in chunks leaves RazorAttention bitwise where the whole prompt does") {
  const RandomTokens text(Small, 301, 54);
  KVCache whole(Small, Razor, Exact);
  whole.prefill(0, text.tokens(0, 300), {});
  for (const std::size_t chunk : {1u, 7u, 100u}) {
    KVCache cache(Small, Razor, Exact);
    for (std::size_t at = 0; at < 300; at += chunk) {
      const std::size_t count = std::min<std::size_t>(chunk, 300 - at);
      cache.prefill(0, text.tokens(at, count), {}, at + count == 300);
    }
    CHECK(gathered(cache, {0, 1}).keys == gathered(whole, {0, 1}).keys);
    CHECK(gathered(cache, {0, 1}).values == gathered(whole, {0, 1}).values);
    CHECK(probe(cache, text, 300) == probe(whole, text, 300));
  }
}

TEST_CASE("A fork of RazorAttention goes its own way, its original stays") {
  const RandomTokens text(Small, 301, 55), other(Small, 301, 56);
  const auto decode = [](CacheCore& cache, const RandomTokens& tokens, std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      Outputs out(Small, 1);
      cache.decode(0, tokens.tokens(t, 1), out.rows(0, 1));
    }
  };
  KVCache original(Small, Razor, Exact), alone(Small, Razor, Exact), second(Small, Razor, Exact);
  original.prefill(0, text.tokens(0, 150), {});
  auto fork = original.fork();
  decode(fork, other, 150, 300);
  decode(original, text, 150, 300);
  alone.prefill(0, text.tokens(0, 150), {});
  decode(alone, text, 150, 300);
  second.prefill(0, text.tokens(0, 150), {});
  decode(second, other, 150, 300);
  CHECK(probe(original, text, 300) == probe(alone, text, 300));
  CHECK(probe(fork, text, 300) == probe(second, text, 300));
}

TEST_CASE("RazorAttention's truncation is exact until tokens went because of what is forgotten") {
  const RandomTokens text(Small, 400, 57);
  KVCache cache(Small, Razor, Exact), never(Small, Razor, Exact);
  for (CacheCore* each : {static_cast<CacheCore*>(&cache), static_cast<CacheCore*>(&never)})
    each->prefill(0, text.tokens(0, 30), {});
  const auto decode = [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      Outputs out(Small, 1);
      cache.decode(0, text.tokens(t, 1), out.rows(0, 1));
    }
  };
  decode(30, 44);  // the buffer is not full yet
  CHECK(cache.truncate(30));
  CHECK(probe(cache, text, 399) == probe(never, text, 399));
  decode(30, 60);
  CHECK_FALSE(cache.truncate(55));
  CHECK(cache.positions({0, 1}) == std::vector<Position>([] {
          std::vector<Position> kept{0, 1, 2, 3, 4};
          for (Position p = 20; p < 55; ++p) kept.push_back(p);
          return kept;
        }()));
  // The mean of tokens 4 to 19 stays; what comes joins it once the window is full again.
  decode(55, 100);
  const Gathered rows = gathered(cache, {0, 1});
  double sum = 0;
  for (std::size_t t = Sinks; t < 100 - Local; ++t) sum += double(text.tokens(t, 1).k[0][32]);
  CHECK(std::abs(double(rows.keys[Sinks * 32]) - sum / (100 - Sinks - Local)) < 1e-6);
}

TEST_CASE("RazorAttention truncated to its sinks starts anew") {
  const RandomTokens text(Small, 301, 58), other(Small, 301, 59);
  KVCache cache(Small, Razor, Exact), fresh(Small, Razor, Exact);
  cache.prefill(0, text.tokens(0, 200), {});
  static_cast<void>(cache.truncate(4));
  fresh.prefill(0, text.tokens(0, 4), {});
  for (CacheCore* each : {static_cast<CacheCore*>(&cache), static_cast<CacheCore*>(&fresh)})
    each->prefill(0, other.tokens(4, 200), {});
  CHECK(naive::distance(probe(cache, text, 300), probe(fresh, text, 300)) < 1e-5);
}

TEST_CASE("compress() lets RazorAttention act on tokens that were fed without an end") {
  const RandomTokens text(Small, 200, 60);
  KVCache cache(Small, Razor, Exact);
  cache.prefill(0, text.tokens(0, 199), {}, false);
  CHECK(cache.positions({0, 1}).size() == 199);
  cache.compress();
  CHECK(cache.positions({0, 1}).size() == Sinks + 1 + Local);
}
