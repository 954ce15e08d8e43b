#include "catch_shim.hpp"

#include <cstddef>
#include <string>
#include <vector>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/error.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/thread_pool.hpp"
#include "support/allocation_counter.hpp"
#include "support/script.hpp"
#include "support/sequence.hpp"
#include "support/session_bytes.hpp"

// Layers with sliding windows and with sink logits, in all that a cache does besides attention.

using namespace kvc;
using namespace support;

namespace {

std::string refusal(auto call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was refused";
}

void check_says(const std::string& sentence, const char* part) {
  INFO(sentence);
  CHECK(sentence.find(part) != std::string::npos);
}

void check_same(const Sequence& a, const Sequence& b) {
  CHECK(a.positions() == b.positions());
  CHECK((a.rows() == b.rows()));
  CHECK((a.answers() == b.answers()));
}

/// Two prompts in parts, each followed by generated tokens. Where a second prompt finds sealed rows that were evicted, in a layer
/// with or without a window, its dense rows lie in other blocks when it came in parts: tokens behind it then add up in another order.
Sequence fed(const CacheShape& shape, const std::string& policy, const LayeredTokens& text, std::size_t part) {
  const bool seals_evicted = policy.find("kivi") != policy.npos;
  Sequence sequence(shape, policy);
  sequence.prefill(text, 0, 900, part);
  sequence.decode(text, 900, 70);
  sequence.prefill(text, 970, 830, part);
  if (!seals_evicted) sequence.decode(text, 1800, 40);
  return sequence;
}

}  // namespace

TEST_CASE("Prompts in parts give the bits of prompts whole, whatever has left the window in between") {
  const CacheShape shape = windowed_shape(300, 0);
  const LayeredTokens text(shape, 2000, 1);
  for (const char* policy : {"full", "full:bits=4,group=16", "kivi:group=16,residual=32",
                             "snapkv:budget=200,window=16 | kivi:group=16,residual=16"}) {
    INFO(policy);
    const Sequence whole = fed(shape, policy, text, 2000);
    for (const std::size_t part : {100u, 256u, 333u}) {
      INFO("parts of " << part);
      check_same(fed(shape, policy, text, part), whole);
    }
  }
}

TEST_CASE("A prompt that comes token by token gives the bits of the prompt whole") {
  const CacheShape shape = windowed_shape(64, 0);
  const LayeredTokens text(shape, 500, 2);
  for (const char* policy : {"full", "kivi:group=16,residual=32"}) {
    INFO(policy);
    Sequence whole(shape, policy), parts(shape, policy);
    for (Sequence* sequence : {&whole, &parts}) {
      const std::size_t part = sequence == &whole ? 300 : 1;
      sequence->decode(text, 0, 90);
      sequence->prefill(text, 90, 300, part);
    }
    check_same(parts, whole);
  }
}

TEST_CASE("A budget that is larger than the window does nothing") {
  const CacheShape shape = windowed_shape(50, 50);
  const LayeredTokens text(shape, 300, 3);
  Sequence full(shape, "full");
  full.prefill(text, 0, 200);
  full.decode(text, 200, 80);
  for (const char* policy :
       {"h2o:budget=60", "snapkv:budget=50,window=8", "streaming_llm:budget=49", "tova:budget=70"}) {
    INFO(policy);
    Sequence sequence(shape, policy);
    sequence.prefill(text, 0, 200);
    sequence.decode(text, 200, 80);
    check_same(sequence, full);
  }
}

TEST_CASE("With a window that no token leaves, a layer gives the bits of one without") {
  const LayeredTokens text(small_shape(), 200, 4);
  for (const char* policy : {"full", "h2o:budget=40 | kivi:group=16,residual=16",
                             "quest:tokens=24,page=8,dense_layers=0", "streaming_llm:budget=40,positions=in_cache"}) {
    INFO(policy);
    CacheShape shape = windowed_shape(201, 1000);
    shape.each_layer[1].sink_logits.clear();
    Sequence windowed(shape, policy), plain(small_shape(), policy);
    for (Sequence* sequence : {&windowed, &plain}) {
      sequence->prefill(text, 0, 120, 50);
      sequence->decode(text, 120, 80);
    }
    check_same(windowed, plain);
  }
}

TEST_CASE("After reserve() decoding through a window allocates nothing") {
  const CacheShape shape = windowed_shape(128, 300);
  const LayeredTokens text(shape, 1400, 5);
  for (const char* policy : {"full", "full:bits=8,group=16", "snapkv:budget=60,window=16", "h2o:budget=60"}) {
    INFO(policy);
    Sequence::Cache cache(shape, AnyPolicy::parse(policy));
    cache.reserve(1400);
    for (std::size_t layer = 0; layer < 2; ++layer) cache.prefill(layer, text.tokens(layer, 0, 200), {});
    Outputs out(shape, 1);
    std::size_t before = 0;
    for (std::size_t t = 200; t < 1400; ++t) {
      if (t == 500) before = allocation_count;
      for (std::size_t layer = 0; layer < 2; ++layer) cache.decode(layer, text.tokens(layer, t, 1), out.rows(0, 1));
    }
    CHECK(allocation_count - before == 0);
  }
}

TEST_CASE("A cut is exact while the window before it is held, and tokens are lost once they have left it") {
  const CacheShape shape = windowed_shape(40, 0);
  const LayeredTokens text(shape, 200, 6);
  Sequence sequence(shape, "full"), twin(shape, "full");
  sequence.prefill(text, 0, 30);
  CHECK(sequence.cache().can_truncate(10) == Truncation::exact);
  sequence.decode(text, 30, 9);  // the next token sees all 39
  CHECK(sequence.cache().can_truncate(10) == Truncation::exact);
  Sequence cut = sequence.fork();
  REQUIRE(cut.cache().truncate(35));
  sequence.decode(text, 39, 1);
  CHECK(sequence.cache().can_truncate(39) == Truncation::lost);
  CHECK(sequence.cache().can_truncate(40) == Truncation::exact);
  CHECK_FALSE(sequence.cache().truncate(39));
  twin.prefill(text, 0, 30);
  twin.decode(text, 30, 5);
  Sequence straight = twin.fork();
  cut.decode(text, 35, 30);
  straight.decode(text, 35, 30);
  check_same(cut, straight);
}

TEST_CASE("Drafts are dropped exactly where the window has slid, which is how to go back") {
  const CacheShape shape = windowed_shape(40, 0);
  const LayeredTokens text(shape, 200, 7);
  Sequence sequence(shape, "full"), twin(shape, "full");
  for (Sequence* each : {&sequence, &twin}) each->prefill(text, 0, 100);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    Outputs out(shape, 5);
    sequence.cache().draft(layer, text.tokens(layer, 100, 5), out.rows(0, 5));
  }
  sequence.cache().accept(0);
  sequence.decode(text, 100, 60);
  twin.decode(text, 100, 60);
  check_same(sequence, twin);
}

TEST_CASE("A batch decodes sequences with windows as they would alone") {
  const CacheShape shape = windowed_shape(30, 0);
  const LayeredTokens text(shape, 300, 8);
  for (const char* policy : {"full", "h2o:budget=20", "kivi:group=16,residual=16"}) {
    INFO(policy);
    Sequence a(shape, policy), b(shape, policy);
    a.prefill(text, 0, 100);
    b.prefill(text, 100, 20);
    Sequence a_alone = a.fork(), b_alone = b.fork();
    ThreadPool pool(2);
    CacheCore* caches[] = {&a.cache(), &b.cache()};
    for (std::size_t t = 0; t < 40; ++t)
      for (std::size_t layer = 0; layer < 2; ++layer) {
        const Tokens two = text.tokens(layer, 150 + 2 * t, 2);
        Outputs out(shape, 2), first(shape, 1), second(shape, 1);
        std::vector<float> lse(2 * shape.query_heads), first_lse(shape.query_heads);
        decode_batch(caches, layer, {.q = two.q, .k = two.k, .v = two.v}, out.rows(0, 2), pool, lse);
        a_alone.cache().decode(layer, text.tokens(layer, 150 + 2 * t, 1), first.rows(0, 1), first_lse);
        b_alone.cache().decode(layer, text.tokens(layer, 151 + 2 * t, 1), second.rows(0, 1));
        std::vector<float> alone = first.values();
        alone.insert(alone.end(), second.values().begin(), second.values().end());
        REQUIRE((out.values() == alone));
        lse.resize(shape.query_heads);
        REQUIRE((lse == first_lse));
      }
    CHECK(a.positions() == a_alone.positions());
    CHECK(b.positions() == b_alone.positions());
  }
}

TEST_CASE("A probe sees windows and leaves no trace of itself") {
  const CacheShape shape = windowed_shape(30, 0);
  const LayeredTokens text(shape, 300, 9);
  Sequence sequence(shape, "full"), twin(shape, "full");
  for (Sequence* each : {&sequence, &twin}) each->prefill(text, 0, 100);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    Outputs asked(shape, 20), prompted(shape, 20);
    Sequence fork = twin.fork();
    for (std::size_t below = 0; below <= layer; ++below)
      fork.cache().prefill(below, text.tokens(below, 100, 20), prompted.rows(0, 20));
    sequence.cache().probe(layer, text.tokens(layer, 100, 20), asked.rows(0, 20), 0, 100);
    CHECK((asked == prompted));
  }
  sequence.decode(text, 120, 40);
  twin.decode(text, 120, 40);
  check_same(sequence, twin);
}

TEST_CASE("What cannot work with windows or sink logits is refused before any token comes") {
  CacheShape shape = windowed_shape(40, 0);
  const auto make = [&](const char* policy) {
    return refusal([&] { const Sequence::Cache cache(shape, AnyPolicy::parse(policy)); });
  };
  check_says(make("mini_cache:start=0"), "would let layers 0 and 1 share rows, but their windows differ: 40 and 0");
  shape = windowed_shape(40, 40);
  check_says(make("mini_cache:start=0"), "nothing was refused");
  shape.each_layer[1].window = -1;
  check_says(make("full"), "each_layer[1].window must not be negative, got -1");
  shape = windowed_shape(40, 40);
  shape.each_layer[1].sink_logits.pop_back();
  check_says(make("full"), "each_layer[1].sink_logits must be empty or have one entry per query head (4), got 3");
  shape.each_layer[1].sink_logits.push_back(HUGE_VALF);
  check_says(make("full"), "each_layer[1].sink_logits[3] is not finite");
  shape.each_layer.pop_back();
  check_says(make("full"), "each_layer must be empty or have one entry per layer (2), got 1");
}

TEST_CASE("A session of a cache with other windows or sink logits is refused by name") {
  const LayeredTokens text(small_shape(), 100, 10);
  Sequence sequence(windowed_shape(40, 0), "full");
  sequence.prefill(text, 0, 80);
  const Bytes session = saved(sequence.cache());
  const auto load = [&](const CacheShape& shape) {
    Sequence::Cache cache(shape, AnyPolicy::parse("full"));
    return refusal([&] { load_from(cache, session); });
  };
  check_says(load(windowed_shape(40, 0)), "nothing was refused");
  check_says(load(windowed_shape(41, 0)), "each_layer[0].window: the session has 40, this cache has 41");
  check_says(load(small_shape()), "the number of CacheShape::each_layer: the session has 2, this cache has 0");
  CacheShape other = windowed_shape(40, 0);
  other.each_layer[1].sink_logits[2] = 7;
  check_says(load(other), "each_layer[1].sink_logits[2]: the session has 2.000000, this cache has 7.000000");
}

TEST_CASE("lse must have a number per query, and an attention that it is of") {
  const CacheShape shape = small_shape();
  const LayeredTokens text(shape, 10, 11);
  KVCache cache(shape, Full{});
  std::vector<float> lse(4);
  Outputs out(shape, 2);
  check_says(refusal([&] { cache.prefill(0, text.tokens(0, 0, 2), out.rows(0, 2), true, lse); }),
             "prefill: lse: got 4 numbers, expected [tokens, query_heads] = 8");
  check_says(refusal([&] { cache.prefill(0, text.tokens(0, 0, 1), {}, true, lse); }), "prefill: lse: without `out`");
  check_says(refusal([&] { cache.decode(0, text.tokens(0, 0, 2), out.rows(0, 2), lse); }), "decode: lse: got 4");
  check_says(refusal([&] { cache.draft(0, text.tokens(0, 0, 2), out.rows(0, 2), lse); }), "draft: lse: got 4");
  CHECK(cache.stats().seen == 0);
}
