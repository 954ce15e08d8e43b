#include "catch_shim.hpp"

#include "support/all_policies.hpp"
#include "support/fake_head.hpp"
#include "support/sequence.hpp"

// An engine can ask what truncate() would leave before it decides.

using namespace kvc;
using namespace support;

namespace {

const CacheShape Shape = small_shape();

/// Whether every head holds exactly the tokens before a position.
bool holds_all_before(const Sequence& sequence, Position from) {
  for (const auto& positions : sequence.positions()) {
    if (positions.size() != static_cast<std::size_t>(from)) return false;
    for (std::size_t slot = 0; slot < positions.size(); ++slot)
      if (positions[slot] != static_cast<Position>(slot)) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("can_truncate says of every policy and position what truncate then does") {
  const LayeredTokens text(Shape, 200, 91);
  for (const PolicyCase& entry : all_policies()) {
    INFO(entry.text);
    Sequence sequence(Shape, entry.text);
    sequence.prefill(text, 0, 60);
    sequence.decode(text, 60, 20);
    for (const Position from : {0, 1, 30, 59, 60, 61, 70, 79, 80, 81}) {
      INFO("from position " << from);
      const Truncation expected = sequence.cache().can_truncate(from);
      Sequence fork = sequence.fork();
      CHECK(fork.cache().truncate(from) == (expected == Truncation::exact));
      if (from > 80) continue;  // there is nothing to forget
      if (expected == Truncation::rounded) CHECK(holds_all_before(fork, from));
      if (expected == Truncation::lost) CHECK(!holds_all_before(fork, from));
    }
  }
}

TEST_CASE("A full cache is truncated exactly, a sealed one rounded, one that evicted loses tokens") {
  const LayeredTokens text(Shape, 200, 92);
  const auto answer = [&](const char* policy, Position from) {
    Sequence sequence(Shape, policy);
    sequence.prefill(text, 0, 60);
    sequence.decode(text, 60, 40);
    return sequence.cache().can_truncate(from);
  };
  CHECK(answer("full", 5) == Truncation::exact);
  CHECK(answer("kivi:group=16,residual=16", 50) == Truncation::rounded);
  CHECK(answer("kivi:group=16,residual=16", 100) == Truncation::exact);
  CHECK(answer("streaming_llm:budget=30", 70) == Truncation::lost);
  CHECK(answer("streaming_llm:budget=30", 4) == Truncation::rounded);  // its sinks are all there
  CHECK(answer("snapkv:budget=30,window=8", 50) == Truncation::lost);
  CHECK(answer("snapkv:budget=30,window=8", 60) == Truncation::exact);  // as it was when the prompt had ended
}

TEST_CASE("next_position is one behind the last token, with gaps, after truncation and in an empty cache") {
  const LayeredTokens text(Shape, 50, 93);
  KVCache cache(Shape, AnyPolicy::parse("full"));
  CHECK(cache.next_position() == 0);
  const Position positions[] = {3, 10, 11};
  for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
    Tokens tokens = text.tokens(layer, 0, 3);
    tokens.positions = positions;
    cache.prefill(layer, tokens, {});
  }
  CHECK(cache.next_position() == 12);
  REQUIRE(cache.truncate(7));
  CHECK(cache.next_position() == 7);
  cache.clear();
  CHECK(cache.next_position() == 0);
}

TEST_CASE("Where positions have gaps and a policy evicts, what is not exact is lost") {
  const LayeredTokens text(Shape, 80, 94);
  KVCache cache(Shape, AnyPolicy::parse("streaming_llm:budget=30"));
  std::vector<Position> positions(60);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = 2 * static_cast<Position>(i);
  for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
    Tokens tokens = text.tokens(layer, 0, 60);
    tokens.positions = positions;
    cache.prefill(layer, tokens, {});
  }
  CHECK(cache.can_truncate(4) == Truncation::lost);
  CHECK(cache.can_truncate(200) == Truncation::exact);
}

TEST_CASE("A negative position is refused") {
  const KVCache cache(Shape, AnyPolicy::parse("full"));
  CHECK(error_text([&] { static_cast<void>(cache.can_truncate(-1)); }) == "can_truncate: position -1 is negative");
}
