#include "catch_shim.hpp"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>
#include <vector>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/all_policies.hpp"
#include "support/fake_head.hpp"
#include "support/random_tokens.hpp"
#include "support/sequence.hpp"

// Tokens in the middle are forgotten while all others stay what and where they are. Against the naive model: the random walks of
// tests/invariants; when memory is refused: all_or_nothing_test.cpp.

using namespace kvc;
using namespace support;

namespace {

const CacheShape Shape = small_shape();

using Rows2 = std::vector<std::vector<float>>;

/// Of the rows [slots, dim] of each head those at positions outside [first, last).
std::vector<Position> without(const std::vector<Position>& positions, Position first, Position last) {
  std::vector<Position> rest;
  std::ranges::copy_if(positions, std::back_inserter(rest), [=](Position p) { return p < first || p >= last; });
  return rest;
}

}  // namespace

TEST_CASE("remove forgets the tokens of a range and leaves all others bit for bit, under every policy") {
  const LayeredTokens text(Shape, 200, 95);
  for (const PolicyCase& entry : all_policies()) {
    INFO(entry.text);
    // What is left of a block that is mostly dead becomes dense rows, as after an eviction: those of f32 hold its bits.
    Sequence sequence(Shape, entry.text, {.dense = {Scalar::f32}});
    sequence.prefill(text, 0, 60);
    sequence.decode(text, 60, 20);
    const Sequence before = sequence.fork();
    sequence.cache().remove(20, 45);
    CHECK(sequence.cache().next_position() == 80);
    const auto expected = before.positions();
    const Rows2 rows = sequence.rows(), rows_before = before.rows();
    for (std::size_t head = 0; head < expected.size(); ++head) {
      REQUIRE(sequence.positions()[head] == without(expected[head], 20, 45));
      // rows() has the keys of a head and behind them its values.
      const std::size_t slots = expected[head].size(), floats = slots == 0 ? 0 : rows_before[head].size() / slots / 2;
      std::vector<float> stay;
      for (const std::size_t side : {std::size_t{0}, slots})
        for (std::size_t slot = 0; slot < slots; ++slot)
          if (expected[head][slot] < 20 || expected[head][slot] >= 45) {
            const auto row = rows_before[head].begin() + static_cast<std::ptrdiff_t>((side + slot) * floats);
            stay.insert(stay.end(), row, row + static_cast<std::ptrdiff_t>(floats));
          }
      CHECK((rows[head] == stay));
    }
    sequence.decode(text, 80, 20);
    CHECK(sequence.cache().next_position() == 100);
  }
}

TEST_CASE("A full cache after remove answers as one that never had the tokens") {
  const CacheShape shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .rotary = Rotary::standard(16)};
  const LayeredTokens text(shape, 100, 96);
  std::vector<float> with(4 * 16), never(4 * 16);
  KVCache edited(shape, AnyPolicy::parse("full:type=f32")), other(shape, AnyPolicy::parse("full:type=f32"));
  std::vector<Position> positions;
  for (Position p = 0; p < 100; ++p)
    if (p < 30 || p >= 50) positions.push_back(p);
  for (std::size_t layer = 0; layer < shape.layers; ++layer) {
    edited.prefill(layer, text.tokens(layer, 0, 99), {});
    Tokens head = text.tokens(layer, 0, 30), tail = text.tokens(layer, 50, 49);
    tail.positions = std::span(positions).subspan(30, 49);
    other.prefill(layer, head, {}, false);
    other.prefill(layer, tail, {});
  }
  edited.remove(30, 50);
  CHECK(edited.stats().seen == other.stats().seen);
  for (std::size_t layer = 0; layer < shape.layers; ++layer) {
    edited.decode(layer, text.tokens(layer, 99, 1), {with.data(), 1, with.size()});
    other.decode(layer, text.tokens(layer, 99, 1), {never.data(), 1, never.size()});
    for (std::size_t i = 0; i < with.size(); ++i) CHECK(with[i] == Approx(never[i]).margin(1e-6));
  }
}

TEST_CASE("remove with nothing behind the range is truncate: the next token takes the first place") {
  const LayeredTokens text(Shape, 100, 97);
  for (const char* policy : {"full", "kivi:group=16,residual=16", "h2o:budget=30"}) {
    INFO(policy);
    Sequence removed(Shape, policy), cut(Shape, policy);
    for (Sequence* sequence : {&removed, &cut}) {
      sequence->prefill(text, 0, 60);
      sequence->decode(text, 60, 5);
    }
    removed.cache().remove(62, 1000);
    static_cast<void>(cut.cache().truncate(62));
    CHECK(removed.cache().next_position() == 62);
    CHECK(removed.positions() == cut.positions());
    CHECK((removed.rows() == cut.rows()));
    CHECK(removed.cache().stats().seen == cut.cache().stats().seen);
  }
}

TEST_CASE("A range that holds no token is removed without a trace") {
  const LayeredTokens text(Shape, 100, 98);
  Sequence sequence(Shape, "full");
  sequence.cache().remove(0, 10);  // an empty cache
  sequence.prefill(text, 0, 60);
  const auto rows = sequence.rows();
  sequence.cache().remove(7, 7);
  sequence.cache().remove(60, 90);
  CHECK((sequence.rows() == rows));
  CHECK(sequence.cache().next_position() == 60);
  sequence.cache().remove(10, 20);
  const std::size_t seen = sequence.cache().stats().seen;
  sequence.cache().remove(10, 20);
  CHECK(sequence.cache().stats().seen == seen);
}

TEST_CASE("A fork keeps what its parent removes, and so does a parent") {
  const LayeredTokens text(Shape, 100, 99);
  for (const char* policy : {"full", "kivi:group=16,residual=16", "mini_cache:start=0"}) {
    INFO(policy);
    Sequence parent(Shape, policy);
    parent.prefill(text, 0, 80);
    Sequence fork = parent.fork();
    const auto positions = parent.positions();
    const auto rows = parent.rows();
    parent.cache().remove(10, 50);
    CHECK(fork.positions() == positions);
    CHECK((fork.rows() == rows));
    fork.cache().remove(0, 79);
    CHECK(parent.positions()[0].size() == 40);
  }
}

TEST_CASE("What cannot be edited is refused with a sentence") {
  const LayeredTokens text(Shape, 100, 90);
  Sequence sequence(Shape, "full");
  KVCache<AnyPolicy>& cache = sequence.cache();
  sequence.prefill(text, 0, 20);
  CHECK(error_text([&] { cache.remove(-1, 3); }) == "remove: position -1 is negative");
  CHECK(error_text([&] { cache.remove(5, 3); }) == "remove: the positions 5 to 3 are no range");
  std::vector<float> out(Shape.query_heads * Shape.values_dim());
  for (std::size_t layer = 0; layer < Shape.layers; ++layer)
    cache.draft(layer, text.tokens(layer, 20, 1), {out.data(), 1, out.size()});
  CHECK(error_text([&] { cache.remove(0, 3); }) ==
        "remove: drafted tokens are waiting; call accept() first, or accept(0), which drops them");
  cache.accept(0);
  for (std::size_t layer = 0; layer < Shape.layers; ++layer) cache.prefill(layer, text.tokens(layer, 20, 5), {}, false);
  CHECK(error_text([&] { cache.remove(0, 3); }) ==
        "remove: a prompt is open in layer 0, and what policies remember of it would no longer fit its tokens; edit "
        "after "
        "its last part, or after compress(), which ends it");
  CHECK(cache.positions({0, 0}).size() == 25);
}
