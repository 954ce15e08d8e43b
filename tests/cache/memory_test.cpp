#include "catch_shim.hpp"

#include <memory_resource>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/allocation_counter.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;
using support::Outputs;
using support::RandomTokens;

namespace {

const CacheShape Small{.layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 32};

/// Allocations of the last `steps` of `prompt` + `warm` + `steps` tokens, after reserve() for all of them.
std::size_t allocations_of_decode(const char* policy, std::size_t prompt, std::size_t warm, std::size_t steps) {
  const RandomTokens text(Small, prompt + warm + steps, 71);
  KVCache cache(Small, AnyPolicy::parse(policy));
  cache.reserve(prompt + warm + steps);
  if (prompt)
    for (std::size_t layer = 0; layer < 2; ++layer) cache.prefill(layer, text.tokens(0, prompt), {});
  Outputs out(Small, 1);
  std::size_t before = 0;
  for (std::size_t t = prompt; t < prompt + warm + steps; ++t) {
    if (t == prompt + warm) before = support::allocation_count;
    for (std::size_t layer = 0; layer < 2; ++layer) cache.decode(layer, text.tokens(t, 1), out.rows(0, 1));
  }
  return support::allocation_count - before;
}

/// Counts what is held of a resource.
class Counting final : public std::pmr::memory_resource {
 public:
  std::size_t held = 0;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    held += bytes;
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    held -= bytes;
    std::pmr::new_delete_resource()->deallocate(memory, bytes, alignment);
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }
};

}  // namespace

TEST_CASE("After reserve() two hundred steady decode steps allocate nothing") {
  for (const char* policy :
       {"full", "full:bits=8", "streaming_llm:budget=100", "h2o:budget=100", "kivi:residual=32",
        "snapkv:budget=150,window=16 | kivi:residual=32", "h2o:budget=100 | kivi:residual=32",
        "razor_attention:heads=none,budget=100", "razor_attention:heads=none,budget=100 | kivi:residual=32,sinks=5"}) {
    INFO(policy);
    CHECK(allocations_of_decode(policy, 200, 150, 200) == 0);
  }
}

TEST_CASE("Quest allocates only when its table of pages doubles") {
  // Two vectors in each of four heads, at 16 and at 32 pages.
  CHECK(allocations_of_decode("quest:tokens=64,page=16,dense_layers=0", 200, 150, 200) <= 16);
}

TEST_CASE("After reserve() a long generation without a prompt allocates nothing either") {
  for (const char* policy : {"full", "kivi:residual=32"}) {
    INFO(policy);
    CHECK(allocations_of_decode(policy, 0, 50, 1500) == 0);
  }
}

TEST_CASE("Blocks live in the engine's memory resource, which gets everything back") {
  Counting memory;
  {
    const RandomTokens text(Small, 400, 72);
    KVCache cache(Small, AnyPolicy::parse("h2o:budget=100 | kivi:residual=32"), {.memory = &memory});
    CHECK(memory.held == 0);
    for (std::size_t layer = 0; layer < 2; ++layer) cache.prefill(layer, text.tokens(0, 200), {});
    const Stats stats = cache.stats();
    CHECK(memory.held >= stats.payload + stats.slack);
    KVCache fork = cache.fork();
    Outputs out(Small, 1);
    for (std::size_t t = 200; t < 400; ++t)
      for (std::size_t layer = 0; layer < 2; ++layer) fork.decode(layer, text.tokens(t, 1), out.rows(0, 1));
    CHECK(memory.held > stats.payload);
  }
  CHECK(memory.held == 0);
}

TEST_CASE("Eviction and compression show in the bytes, which are payload, metadata and slack") {
  const RandomTokens text(Small, 1000, 73);
  const auto stats_of = [&](const char* policy) {
    KVCache cache(Small, AnyPolicy::parse(policy));
    for (std::size_t layer = 0; layer < 2; ++layer) cache.prefill(layer, text.tokens(0, 1000), {});
    const Stats stats = cache.stats();
    CHECK(stats.bytes() == stats.payload + stats.metadata + stats.slack);
    CHECK(stats.dense_bytes == 1000 * 2 * 2 * 64 * 2);
    CHECK(stats.seen == 1000);
    return stats;
  };
  const Stats full = stats_of("full"), evicted = stats_of("streaming_llm:budget=100"),
              sealed = stats_of("kivi:bits=2,residual=32");
  // Prompt rows come in blocks of 256: 1000 tokens need 1000 rows of 32 halves, keys and values, in 4 heads.
  CHECK(full.payload >= full.dense_bytes);
  CHECK(full.payload * 50 < full.dense_bytes * 51);
  CHECK(full.ratio() > 0.9);
  CHECK(full.slots == 4000);
  CHECK(evicted.slots == 400);
  CHECK(evicted.ratio() > 6);
  // Two bits and 2 * 16 bits of metadata per 32 numbers: 16 / 3 at most.
  CHECK(sealed.ratio() > 3.5);
  CHECK(sealed.ratio() < 16.0 / 3);
}
