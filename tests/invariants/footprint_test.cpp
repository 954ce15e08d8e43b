#include "catch_shim.hpp"

#include "kvc/storage/row_store.hpp"
#include "support/allocation_counter.hpp"
#include "support/for_each_policy.hpp"
#include "support/sequence.hpp"

// What every policy's cache says about its memory, and asks for.

using namespace kvc;
using namespace support;

namespace {

const CacheShape Shape = small_shape();

/// Sums of the parts; what belongs to no single head or layer (queries kept for a policy, the ramp of positions) is
/// metadata of the whole.
void check_sums(const Sequence& sequence) {
  const KVCache<AnyPolicy>& cache = sequence.cache();
  const auto check = [](const Stats& whole, const Stats& parts) {
    CHECK(whole.bytes() == whole.payload + whole.metadata + whole.slack);
    CHECK(whole.payload == parts.payload);
    CHECK(whole.slack == parts.slack);
    CHECK(whole.metadata >= parts.metadata);
    CHECK(whole.slots == parts.slots);
    CHECK(whole.dead == parts.dead);
    CHECK(whole.seen == parts.seen);
    CHECK(whole.dense_bytes == parts.dense_bytes);
  };
  Stats layers;
  for (std::uint32_t layer = 0; layer < Shape.layers; ++layer) {
    Stats heads;
    for (std::uint32_t head = 0; head < Shape.kv_heads; ++head) {
      const Stats one = cache.stats(HeadId{layer, head});
      CHECK(one.slots == cache.positions({layer, head}).size());
      heads += one;
    }
    check(cache.stats(layer), heads);
    layers += cache.stats(layer);
  }
  check(cache.stats(), layers);
  CHECK(cache.stats().dense_bytes == cache.stats().seen * Shape.heads() * 2 * 16 * 2);
}

/// The dense cache of every token seen, and beside it no more than the unused rows of a block begun by a prompt, of an open
/// block and of a block of codes, in each side of each head.
void check_rows_held(const Sequence& sequence, std::size_t row_bytes) {
  constexpr std::size_t Unused = TileLanes + RowStore::OpenRows + RowStore::SealedRows;
  for (const HeadId id : Sequence::heads(Shape)) {
    const Stats stats = sequence.cache().stats(id);
    CHECK(stats.payload + stats.slack <= 2 * (stats.seen + Unused) * row_bytes);
  }
}

/// Metadata of a head: for a slot its position, and in each side a row number and a place in the list of free rows, in
/// vectors that double; what policies keep; for a block its Segment, its Block and the counts of the pointer.
void check_metadata(const PolicyCase& entry, const Sequence& sequence) {
  constexpr std::size_t PerSlot = 2 * 5 * 4, PerBlock = sizeof(Segment) + sizeof(Block) + 2 * sizeof(void*);
  const KVCache<AnyPolicy>& cache = sequence.cache();
  std::size_t kept = 0;
  for (const auto& stage : cache.stages()) kept += stage->slot_bytes();
  for (const HeadId id : Sequence::heads(Shape)) {
    const std::size_t blocks = cache.key_rows(id).segments().size() + cache.value_rows(id).segments().size();
    CHECK(blocks <= 2 * (cache.stats(id).seen / TileLanes + 3));
    const std::size_t state = entry.state_bytes + cache.stats(id).seen * entry.state_bytes_per_token;
    CHECK(cache.stats(id).metadata <= (cache.stats(id).seen + 16) * (PerSlot + kept) + blocks * PerBlock + state);
  }
  // What is not any head's: queries that wait for the prompt's end, the ramp of positions.
  const std::size_t seen = cache.stats().seen;
  std::size_t heads = 0, whole = (seen + seen / 2 + 64) * 2 * sizeof(Position);
  for (const HeadId id : Sequence::heads(Shape)) heads += cache.stats(id).metadata;
  CHECK(cache.stats().metadata <= heads + whole);
}

}  // namespace

TEST_CASE("Statistics add up, and no policy holds more than the dense cache and the slack that is documented") {
  const LayeredTokens text(Shape, 400, 31);
  for_each_policy(Invariant::statistics, [&](const PolicyCase& entry) {
    const std::size_t row_bytes = 16 * (entry.text == "full:type=f32" ? 4 : 2);
    Sequence sequence(Shape, entry.text);
    const auto check = [&] {
      check_sums(sequence);
      check_rows_held(sequence, row_bytes);
      check_metadata(entry, sequence);
    };
    check();
    sequence.prefill(text, 0, 100);
    check();
    for (std::size_t t = 100; t < 300; ++t) {
      sequence.decode(text, t, 1);
      if (t % 20 == 0) check();
    }
    Sequence fork = sequence.fork();
    fork.decode(text, 300, 50);
    sequence.prefill(text, 300, 100, 40);
    check();
    CHECK(sequence.cache().stats().seen == 400);
    CHECK(fork.cache().stats().seen == 350);
    check_sums(fork);
  });
}

TEST_CASE("After reserve() a hundred steady decode steps allocate nothing, whatever the policy") {
  constexpr std::size_t Prompt = 100, Warm = 100, Steps = 100;
  const LayeredTokens text(Shape, Prompt + Warm + Steps, 32);
  Outputs out(Shape, 1);
  const auto count = [&](const PolicyCase& entry) {
    KVCache cache(Shape, entry.policy());
    cache.reserve(Prompt + Warm + Steps);
    prefill_whole(
        cache, [&](std::size_t layer) { return text.tokens(layer, 0, Prompt); },
        [](std::size_t) { return Rows<float>(); });
    std::size_t before = 0;
    for (std::size_t t = Prompt; t < Prompt + Warm + Steps; ++t) {
      if (t == Prompt + Warm) before = allocation_count;
      for (std::size_t layer = 0; layer < Shape.layers; ++layer)
        cache.decode(layer, text.tokens(layer, t, 1), out.rows(0, 1));
    }
    return allocation_count - before;
  };
  for_each_policy(Invariant::allocations, [&](const PolicyCase& entry) {
    count(entry);  // a thread keeps its working memory for all caches
    CHECK(count(entry) == 0);
  });
}
