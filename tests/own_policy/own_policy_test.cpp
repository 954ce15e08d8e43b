#include "own_policy.hpp"

#include "catch_shim.hpp"
#include "support/fake_head.hpp"
#include "support/random_tokens.hpp"

// The test of docs/write_a_policy.md: one head by hand, then a cache.

using kvc::Event;

TEST_CASE("HeavyValues drops the tokens whose attention times value is least, but not the newest") {
  support::FakeHead<HeavyValues> fake({.budget = 5, .sinks = 0, .recent = 2});
  fake.append(8);
  fake.observe(Event::prompt_end, 8);
  for (std::size_t slot = 0; slot < 8; ++slot) fake.slots[slot] = {.attention = 1, .length = float(slot % 3)};
  fake.apply(fake.plan(Event::prompt_end));
  CHECK(fake.positions == std::vector<kvc::Position>{1, 2, 5, 6, 7});  // lengths 0 1 2 0 1 2, then the newest two
}

TEST_CASE("HeavyValues knows how long a value is") {
  support::FakeHead<HeavyValues> fake({});
  fake.append(3);
  fake.stored_values[1] = {3, 0, 4, 0, 0, 0, 0, 0};
  fake.observe(Event::prompt_end, 3);
  CHECK(fake.slots[1].length == 5);
}

TEST_CASE("HeavyValues | KIVI holds its budget while tokens come") {
  const kvc::CacheShape shape{.query_heads = 4, .kv_heads = 2, .head_dim = 32};
  kvc::KVCache cache(shape, HeavyValues{.budget = 160} | kvc::KIVI{.bits = 4, .residual = 32});
  const support::RandomTokens text(shape, 500, 1);
  support::Outputs out(shape, 1);
  cache.prefill(0, text.tokens(0, 400), {});
  for (std::size_t t = 400; t < 500; ++t) {
    cache.decode(0, text.tokens(t, 1), out.rows(0, 1));
    CHECK(cache.positions({0, 1}).size() == 160);
  }
  CHECK(cache.stats().ratio() > 500.0 / 160);  // more than dropping alone could give
}
