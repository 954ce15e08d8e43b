#include "catch_shim.hpp"

#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/external_scores.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/policies/h2o.hpp"
#include "kvc/policies/kivi.hpp"
#include "kvc/policies/streaming_llm.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;
using support::Outputs;
using support::RandomTokens;

namespace {

const CacheShape Small{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 24};
constexpr std::size_t QueryDim = 64, KeyDim = 32, ValueDim = 48, OutDim = 96;

/// The code and message of what `call` throws; the message "nothing" if it throws nothing.
template <class Call>
std::pair<ErrorCode, std::string> thrown(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {ErrorCode::bad_file, "nothing"};
}

using Thrown = std::pair<ErrorCode, std::string>;

/// A copy of rows whose element `index` is NaN.
std::vector<float> spoilt(ConstRows rows, std::size_t index) {
  std::vector<float> copy(rows.data, rows.data + rows.count * rows.dim);
  copy[index] = std::numeric_limits<float>::quiet_NaN();
  return copy;
}

/// A cache in the middle of its life, its twin, and tokens and room that can be spoilt.
struct Fixture {
  RandomTokens text{Small, 100, 61};
  KVCache<H2O> cache{Small, H2O{.budget = 30}}, twin{Small, H2O{.budget = 30}};
  std::vector<float> out = std::vector<float>(4 * OutDim);
  Tokens tokens = text.tokens(50, 2);
  Rows<float> room{out.data(), 2, OutDim};

  Fixture() {
    for (CacheCore* each : {static_cast<CacheCore*>(&cache), static_cast<CacheCore*>(&twin)})
      for (std::size_t layer = 0; layer < 2; ++layer) each->prefill(layer, text.tokens(0, 50), {});
  }
  /// Whether the cache still answers bit for bit as its twin that met no error.
  bool unchanged() {
    bool same = cache.stats().bytes() == twin.stats().bytes() && cache.stats().seen == twin.stats().seen;
    for (std::size_t t = 60; t < 64; ++t)
      for (std::size_t layer = 0; layer < 2; ++layer) {
        Outputs a(Small, 1), b(Small, 1);
        cache.decode(layer, text.tokens(t, 1), a.rows(0, 1));
        twin.decode(layer, text.tokens(t, 1), b.rows(0, 1));
        same = same && a == b;
      }
    return same;
  }
};

}  // namespace

TEST_CASE("A layer that the cache lacks is refused by every call that takes one") {
  Fixture f;
  const Thrown expected{ErrorCode::invalid_argument, "layer: got 2, the cache has layers 0 to 1"};
  CHECK(thrown([&] { f.cache.prefill(2, f.tokens, f.room); }) == expected);
  CHECK(thrown([&] { f.cache.decode(2, f.tokens, f.room); }) == expected);
  CHECK(thrown([&] { f.cache.draft(2, f.tokens, f.room); }) == expected);
  CHECK(thrown([&] { f.cache.probe(2, f.tokens, f.room, 0, 1); }) == expected);
  CHECK(thrown([&] { f.cache.attend(2, f.tokens.q, f.room); }) == expected);
  CHECK(thrown([&] { static_cast<void>(f.cache.stats(2)); }) == expected);
  CHECK(f.unchanged());
}

TEST_CASE("A head that the cache lacks is refused") {
  Fixture f;
  const Thrown expected{ErrorCode::invalid_argument,
                        "HeadId: layer 1, head 2 is outside the cache's 2 layers of 2 KV heads"};
  CHECK(thrown([&] { static_cast<void>(f.cache.positions({1, 2})); }) == expected);
  CHECK(thrown([&] { static_cast<void>(f.cache.stats({1, 2})); }) == expected);
  CHECK(thrown([&] { f.cache.key_rows({1, 2}); }) == expected);
  CHECK(thrown([&] { f.cache.value_rows({1, 2}); }) == expected);
  CHECK(thrown([&] { static_cast<void>(f.cache.positions({2, 0})); }).first == ErrorCode::invalid_argument);
}

TEST_CASE("Rows of the wrong shape are refused by name, before any layer or head has changed") {
  Fixture f;
  const Tokens good = f.tokens;
  const auto refused = [&](const Tokens& tokens, const std::string& message) {
    CHECK(thrown([&] { f.cache.prefill(0, tokens, f.room); }) ==
          Thrown(ErrorCode::shape_mismatch, "prefill: " + message));
    CHECK(thrown([&] { f.cache.decode(0, tokens, f.room); }) ==
          Thrown(ErrorCode::shape_mismatch, "decode: " + message));
    CHECK(thrown([&] { f.cache.draft(0, tokens, f.room); }) == Thrown(ErrorCode::shape_mismatch, "draft: " + message));
    CHECK(thrown([&] { f.cache.probe(0, tokens, f.room, 0, 1); }) ==
          Thrown(ErrorCode::shape_mismatch, "probe: " + message));
  };
  Tokens bad = good;
  bad.q = {good.q.data, 2, QueryDim - 1};
  refused(bad, "q: got [2, 63], expected [2, 64]");
  bad = good;
  bad.q = {good.q.data, 1, QueryDim};
  refused(bad, "q: got [1, 64], expected [2, 64]");
  bad = good;
  bad.k = {good.k.data, 2, KeyDim + 1};
  refused(bad, "k: got [2, 33], expected [2, 32]");
  bad = good;
  bad.v = {good.v.data, 3, ValueDim};
  refused(bad, "v: got [3, 48], expected [2, 48]");
  bad = good;
  bad.v = {nullptr, 2, ValueDim};
  refused(bad, "v: got [2, 48] without data, expected [2, 48]");
  bad = good;
  bad.k.stride = 31;
  refused(bad, "k: stride (31) is smaller than a row (32)");
  const std::vector<Position> three{60, 61, 62};
  bad = good;
  bad.positions = three;
  refused(bad, "Tokens::positions: got 3, expected one per token (2) or none");
  CHECK(f.unchanged());
}

TEST_CASE("Room of the wrong shape for the output is refused") {
  Fixture f;
  const Rows<float> narrow(f.out.data(), 2, OutDim - 1), few(f.out.data(), 1, OutDim), none;
  const Thrown expected{ErrorCode::shape_mismatch, "decode: out: got [2, 95], expected [2, 96]"};
  CHECK(thrown([&] { f.cache.decode(0, f.tokens, narrow); }) == expected);
  CHECK(thrown([&] { f.cache.prefill(0, f.tokens, few); }).second == "prefill: out: got [1, 96], expected [2, 96]");
  CHECK(thrown([&] { f.cache.decode(0, f.tokens, none); }).second ==
        "decode: out: got [0, 0] without data, expected [2, 96]");
  CHECK(thrown([&] { f.cache.attend(0, f.tokens.q, narrow); }).second == "attend: out: got [2, 95], expected [2, 96]");
  CHECK(f.unchanged());
}

TEST_CASE("NaN and infinity are refused with their place, unless the engine says that it checks itself") {
  Fixture f;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (const char* name : {"q", "k", "v"}) {
      const std::string which(name);
      const ConstRows& rows = which == "q" ? f.tokens.q : which == "k" ? f.tokens.k : f.tokens.v;
      std::vector<float> copy(rows.data, rows.data + 2 * rows.dim);
      copy[rows.dim + 17] = bad;
      Tokens spoilt = f.tokens;
      (which == "q" ? spoilt.q : which == "k" ? spoilt.k : spoilt.v) = {copy.data(), 2, rows.dim};
      const std::string message = "decode: " + which + ": row 1, column 17 is " +
                                  (std::isnan(bad) ? "NaN" : "infinite") + "; nothing was appended";
      CHECK(thrown([&] { f.cache.decode(0, spoilt, f.room); }) == Thrown(ErrorCode::non_finite, message));
      CHECK(thrown([&] { f.cache.prefill(0, spoilt, {}); }).first == ErrorCode::non_finite);
      KVCache trusting(Small, Full{}, {.check_finite = false});
      CHECK(thrown([&] { trusting.prefill(0, spoilt, {}); }).second == "nothing");
    }
  std::vector<float> query(f.tokens.q.data, f.tokens.q.data + QueryDim);
  query[3] = std::numeric_limits<float>::infinity();
  CHECK(thrown([&] {
          f.cache.attend(0, {query.data(), 1, QueryDim}, {f.out.data(), 1, OutDim});
        }) == Thrown(ErrorCode::non_finite, "attend: queries: row 0, column 3 is infinite; nothing was appended"));
  CHECK(f.unchanged());
}

TEST_CASE("Positions must ascend and leave room for the next") {
  Fixture f;
  const auto refused = [&](std::vector<Position> positions) {
    Tokens tokens = f.tokens;
    tokens.positions = positions;
    return thrown([&] { f.cache.decode(0, tokens, f.room); });
  };
  CHECK(refused({49, 50}) ==
        Thrown(ErrorCode::invalid_argument, "decode: Tokens::positions: 49 does not come after 49"));
  CHECK(refused({52, 52}) ==
        Thrown(ErrorCode::invalid_argument, "decode: Tokens::positions: 52 does not come after 52"));
  CHECK(refused({-1, 52}).first == ErrorCode::invalid_argument);
  CHECK(refused({52, std::numeric_limits<Position>::max()}) ==
        Thrown(ErrorCode::invalid_argument,
               "decode: Tokens::positions: 2147483647 leaves no position for the next token"));
  CHECK(f.unchanged());
}

TEST_CASE("External scores that the policy needs and the engine did not give are missed by name") {
  KVCache cache(Small, ExternalScores{.budget = 20});
  const RandomTokens text(Small, 10, 62);
  Tokens tokens = text.tokens(0, 10);
  tokens.scores = {};
  CHECK(thrown([&] { cache.prefill(0, tokens, {}); }) ==
        Thrown(ErrorCode::missing_feed,
               "prefill: Tokens::scores: got 0 numbers, the policy needs external scores [tokens, kv_heads] = 20"));
  CHECK(cache.stats().seen == 0);
}

TEST_CASE("In-cache positions without a rotary table are refused at construction") {
  struct InCache {
    Positions positions = Positions::in_cache;
    void evict(Head<InCache>&, Plan&) const {}
  };
  CHECK(thrown([&] { KVCache cache(Small, InCache{}); }) ==
        Thrown(ErrorCode::missing_feed,
               "CacheShape::rotary: in-cache positions need the model's rotary table, but it is empty"));
}

TEST_CASE("A negative position cannot be truncated to") {
  Fixture f;
  CHECK(thrown([&] { static_cast<void>(f.cache.truncate(-1)); }) ==
        Thrown(ErrorCode::invalid_argument, "truncate: position -1 is negative"));
  CHECK(f.unchanged());
}

TEST_CASE("gather wants room for exactly the slots there are") {
  Fixture f;
  std::vector<float> memory(30 * 24);
  const Rows<float> keys(memory.data(), 30, 16), values(memory.data(), 30, 24);
  CHECK(thrown([&] {
          f.cache.gather({0, 0}, {memory.data(), 29, 16}, values);
        }) == Thrown(ErrorCode::shape_mismatch, "gather: keys: got [29, 16], expected [30, 16]"));
  CHECK(thrown([&] {
          f.cache.gather({0, 0}, keys, {memory.data(), 30, 16});
        }) == Thrown(ErrorCode::shape_mismatch, "gather: values: got [30, 16], expected [30, 24]"));
  CHECK(thrown([&] { f.cache.gather({0, 0}, keys, values); }).second == "nothing");
}

TEST_CASE("While drafts wait for accept() nothing else may change the cache") {
  Fixture f;
  for (std::size_t layer = 0; layer < 2; ++layer) f.cache.draft(layer, f.tokens, f.room);
  const auto waiting = [](const char* call) {
    return Thrown(ErrorCode::invalid_argument, std::string(call) +
                                                   ": drafted tokens are waiting; call accept() first, or "
                                                   "accept(0), which drops them");
  };
  CHECK(thrown([&] { f.cache.decode(0, f.tokens, f.room); }) == waiting("decode"));
  CHECK(thrown([&] { f.cache.prefill(0, f.tokens, f.room); }) == waiting("prefill"));
  CHECK(thrown([&] { f.cache.probe(0, f.tokens, f.room, 0, 1); }) == waiting("probe"));
  CHECK(thrown([&] { f.cache.compress(); }) == waiting("compress"));
  CHECK(thrown([&] { f.cache.make_room(3); }) == waiting("make_room"));
  CacheCore* batch[] = {&f.cache, &f.twin};
  SerialExecutor serial;
  CHECK(thrown([&] { decode_batch(batch, 0, f.tokens, f.room, serial); }) == waiting("decode_batch"));
  const Thrown too_many{ErrorCode::invalid_argument,
                        "accept: asked for 3 tokens, but layer 0 has drafted 2 and layer 0 2: every layer must have "
                        "drafted the same; accept(0) drops what they drafted"};
  CHECK(thrown([&] { f.cache.accept(3); }) == too_many);
  f.cache.accept(0);
  CHECK(f.unchanged());
}

TEST_CASE("accept() refuses layers that drafted differently") {
  Fixture f;
  f.cache.draft(0, f.tokens, f.room);
  CHECK(thrown([&] { f.cache.accept(1); }).first == ErrorCode::invalid_argument);
  f.cache.draft(1, f.tokens, f.room);
  f.cache.accept(0);
  CHECK(f.unchanged());
}

TEST_CASE("accept(0) drops what some layers drafted before another refused") {
  Fixture f;
  f.cache.draft(0, f.tokens, f.room);
  const std::vector<float> keys = spoilt(f.tokens.k, 0);
  f.tokens.k = {keys.data(), 2, KeyDim};
  CHECK(thrown([&] { f.cache.draft(1, f.tokens, f.room); }).first == ErrorCode::non_finite);
  f.cache.accept(0);
  CHECK(f.unchanged());
}

TEST_CASE("Truncating a waiting draft leaves the rest of it waiting") {
  Fixture f;
  for (std::size_t layer = 0; layer < 2; ++layer) f.cache.draft(layer, f.tokens, f.room);
  static_cast<void>(f.cache.truncate(51));
  CHECK(thrown([&] { f.cache.accept(2); }).second ==
        "accept: asked for 2 tokens, but layer 0 has drafted 1 and layer 0 1: every layer must have drafted the same; "
        "accept(0) drops what they drafted");
  f.cache.accept(1);
  for (std::size_t layer = 0; layer < 2; ++layer) f.twin.decode(layer, f.text.tokens(50, 1), {f.out.data(), 1, OutDim});
  CHECK(f.cache.positions({1, 1}) == f.twin.positions({1, 1}));
  CHECK(f.cache.stats().seen == f.twin.stats().seen);
}

TEST_CASE(
    "decode_batch refuses other than one row per cache, and caches of different KV heads, before any has changed") {
  Fixture f;
  SerialExecutor serial;
  CacheCore* two[] = {&f.cache, &f.twin};
  CHECK(thrown([&] { decode_batch(std::span(two).first(1), 0, f.tokens, f.room, serial); }) ==
        Thrown(ErrorCode::shape_mismatch, "decode_batch: q: got 2 rows, expected one per cache (1)"));
  KVCache wider(CacheShape{.layers = 2, .query_heads = 4, .kv_heads = 4, .head_dim = 16, .value_dim = 24}, Full{});
  CacheCore* mixed[] = {&f.cache, &wider};
  CHECK(thrown([&] { decode_batch(mixed, 0, f.tokens, f.room, serial); }) ==
        Thrown(ErrorCode::shape_mismatch, "decode_batch: caches with different numbers of KV heads"));
  CHECK(f.unchanged());
}

TEST_CASE("A stream's batch must be a multiple of the tokens that share a scale") {
  struct Odd {
    Streams quantize(HeadId, const CacheShape&) const {
      Streams streams;
      streams.key = {.format = GroupQuant{.group = 16}, .batch = 24};
      return streams;
    }
  };
  CHECK(thrown([&] { KVCache cache(Small, Odd{}); }) ==
        Thrown(ErrorCode::invalid_argument,
               "Stream (key): batch (24) must be a positive multiple of the tokens that share a scale (16)"));
}

TEST_CASE("Shapes and policies that cannot work are refused at construction") {
  CHECK(thrown([] { KVCache cache(CacheShape{.query_heads = 3, .kv_heads = 2}, Full{}); }).first ==
        ErrorCode::invalid_argument);
  CHECK(thrown([] { KVCache cache(CacheShape{.head_dim = 20}, Full{}); }).first == ErrorCode::invalid_argument);
  CHECK(thrown([] { KVCache cache(Small, StreamingLLM{.budget = 3}); }).first == ErrorCode::impossible_budget);
  CHECK(thrown([] { KVCache cache(Small, KIVI{.group = 32}); }).first == ErrorCode::invalid_argument);
}

TEST_CASE("decode_batch names the argument, and the row as the engine counts it") {
  Fixture f;
  SerialExecutor serial;
  CacheCore* two[] = {&f.cache, &f.twin};
  CHECK(thrown([&] {
          decode_batch(two, 0, f.tokens, {f.room.data, 1, OutDim}, serial);
        }) == Thrown(ErrorCode::shape_mismatch, "decode_batch: out: got 1 rows, expected one per cache (2)"));
  const std::vector<float> keys = spoilt(f.tokens.k, KeyDim + 7);
  f.tokens.k = {keys.data(), 2, KeyDim};
  CHECK(thrown([&] { decode_batch(two, 0, f.tokens, f.room, serial); }).second ==
        "decode_batch: k: row 1, column 7 is NaN; nothing was appended");
}
