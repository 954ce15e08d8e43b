#include "catch_shim.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/storage/row_store.hpp"
#include "support/all_policies.hpp"
#include "support/fake_head.hpp"
#include "support/naive_cache.hpp"
#include "support/random_tokens.hpp"
#include "support/sequence.hpp"
#include "support/session_bytes.hpp"

// Tokens stand elsewhere after shift(), and their keys read as if they had been rotated there. Against the naive model: the random
// walks of tests/invariants; when memory is refused: all_or_nothing_test.cpp.

using namespace kvc;
using namespace support;

namespace {

const CacheShape Shape = small_shape();
const CacheShape Plain{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .rotary = Rotary::standard(16)};

/// One layer's text before its rotary embedding, and the rows that an engine gives for it.
class Unrotated {
 public:
  Unrotated(const CacheShape& shape, std::size_t tokens, unsigned seed) : shape_(&shape), text_(shape, tokens, seed) {}

  /// Token t as if it stood at a position.
  struct Token {
    std::vector<float> q, k, v;
  };
  Token at(std::size_t layer, std::size_t t, Position position) const {
    const Tokens raw = text_.tokens(layer, t, 1);
    Token token{rotated(raw.q[0], position), rotated(raw.k[0], position), {raw.v[0].begin(), raw.v[0].end()}};
    return token;
  }
  /// What attention over tokens that stand at these positions answers token t, in double precision.
  std::vector<double> answer(std::size_t layer, std::size_t t, Position position,
                             const std::vector<std::pair<std::size_t, Position>>& seen) const {
    const std::size_t dim = shape_->head_dim, group = shape_->group();
    const auto part = [&](std::span<const float> row, std::size_t head) {
      const auto from = row.begin() + static_cast<std::ptrdiff_t>(head * dim);
      return naive::Row(from, from + static_cast<std::ptrdiff_t>(dim));
    };
    std::vector<double> out;
    for (std::size_t q = 0; q < shape_->query_heads; ++q) {
      const naive::Row query = naive::turned(part(text_.tokens(layer, t, 1).q[0], q), shape_->rotary, position);
      naive::Row logits;
      for (const auto& [token, place] : seen) {
        const naive::Row key =
            naive::turned(part(text_.tokens(layer, token, 1).k[0], q / group), shape_->rotary, place);
        logits.push_back(naive::product(query, key) / std::sqrt(double(dim)));
      }
      const double most = *std::ranges::max_element(logits);
      double total = 0;
      naive::Row sum(dim);
      for (std::size_t i = 0; i < seen.size(); ++i) {
        const double weight = std::exp(logits[i] - most);
        const naive::Row value = part(text_.tokens(layer, seen[i].first, 1).v[0], q / group);
        for (std::size_t c = 0; c < dim; ++c) sum[c] += weight * value[c];
        total += weight;
      }
      for (const double x : sum) out.push_back(x / total);
    }
    return out;
  }

 private:
  std::vector<float> rotated(std::span<const float> row, Position position) const {
    std::vector<float> all;
    for (std::size_t begin = 0; begin < row.size(); begin += shape_->head_dim) {
      const auto from = row.begin() + static_cast<std::ptrdiff_t>(begin);
      for (const double x :
           naive::turned({from, from + static_cast<std::ptrdiff_t>(shape_->head_dim)}, shape_->rotary, position))
        all.push_back(static_cast<float>(x));
    }
    return all;
  }

  const CacheShape* shape_;
  LayeredTokens text_;
};

/// A cache of such a text, and where each of its tokens stands.
class Shifted {
 public:
  Shifted(const CacheShape& shape, const std::string& policy, std::size_t tokens, unsigned seed)
      : text_(shape, tokens, seed), cache_(shape, AnyPolicy::parse(policy), {.dense = {Scalar::f32}}) {}

  KVCache<AnyPolicy>& cache() { return cache_; }
  const std::vector<std::pair<std::size_t, Position>>& seen() const { return seen_; }

  /// Decodes the next token of the text and returns how far the worst answer of a layer is from the oracle's.
  double decode() {
    const Position position = cache_.next_position();
    seen_.emplace_back(next_, position);
    double worst = 0;
    const CacheShape& shape = cache_.shape();
    std::vector<float> out(shape.query_heads * shape.values_dim());
    for (std::size_t layer = 0; layer < shape.layers; ++layer) {
      const Unrotated::Token token = text_.at(layer, next_, position);
      cache_.decode(layer,
                    {.q = {token.q.data(), 1, token.q.size()},
                     .k = {token.k.data(), 1, token.k.size()},
                     .v = {token.v.data(), 1, token.v.size()}},
                    {out.data(), 1, out.size()});
      worst = std::max(worst, naive::distance(out, text_.answer(layer, next_, position, seen_)));
    }
    ++next_;
    return worst;
  }
  double decode(std::size_t count) {
    double worst = 0;
    for (std::size_t i = 0; i < count; ++i) worst = std::max(worst, decode());
    return worst;
  }
  void remove(Position first, Position last) {
    cache_.remove(first, last);
    std::erase_if(seen_, [=](const auto& token) { return token.second >= first && token.second < last; });
  }
  void shift(Position first, Position last, Position delta) {
    cache_.shift(first, last, delta);
    for (auto& [token, position] : seen_) position += position >= first && position < last ? delta : 0;
  }

 private:
  Unrotated text_;
  KVCache<AnyPolicy> cache_;
  std::vector<std::pair<std::size_t, Position>> seen_;
  std::size_t next_ = 0;
};

/// The first `pairs` angles of a table as YaRN scales it: some as they were, some divided, some in between.
Rotary scaled_rotary(std::size_t dim, bool interleaved) {
  Rotary rotary = Rotary::standard(dim, 10000.0, interleaved);
  for (std::size_t i = 0; i < rotary.inv_freq.size(); ++i)
    rotary.inv_freq[i] /= 1 + 3 * static_cast<float>(i) / static_cast<float>(rotary.inv_freq.size());
  return rotary;
}

}  // namespace

TEST_CASE("A shifted cache answers as if every key had been rotated where it stands now") {
  for (const bool interleaved : {false, true})
    for (const bool partial : {false, true}) {
      CacheShape shape = Plain;
      shape.rotary = scaled_rotary(16, interleaved);
      if (partial) shape.rotary.inv_freq.resize(5);
      Shifted shifted(shape, "full", 200, 71);
      CHECK(shifted.decode(40) < 1e-5);
      shifted.shift(20, 1000, 9);  // makes a gap
      CHECK(shifted.cache().next_position() == 49);
      CHECK(shifted.decode(5) < 1e-5);
      shifted.shift(5, 20, 4);
      CHECK(shifted.decode(5) < 1e-5);
      shifted.remove(7, 12);
      shifted.shift(12, 1000, -7);
      CHECK(shifted.decode(30) < 1e-5);
    }
}

TEST_CASE("A hundred context shifts add no error: nothing is rounded, and the tokens stand where they would stand") {
  Shifted shifted(Plain, "full", 600, 72);
  const double before = shifted.decode(100);
  double after = 0;
  for (int times = 0; times < 100; ++times) {
    shifted.remove(4, 8);
    shifted.shift(8, 1000, -4);
    after = std::max(after, shifted.decode(4));
  }
  CHECK(shifted.cache().next_position() == 100);
  CHECK(before < 2e-6);
  CHECK(after < 2e-6);
  // The same tokens move away and back a hundred times.
  const auto keys = [&] {
    std::vector<float> rows(100 * 16), values(100 * 16);
    shifted.cache().gather({1, 1}, {rows.data(), 100, 16}, {values.data(), 100, 16});
    return rows;
  };
  const std::vector<float> rows = keys();
  for (int times = 0; times < 100; ++times) shifted.shift(30, 2'000'000, times % 2 == 0 ? 1'000'003 : -1'000'003);
  CHECK((keys() == rows));
}

TEST_CASE("shift writes no row: a fork shares every block, and key_positions says what the keys were rotated for") {
  const LayeredTokens text(Shape, 100, 73);
  for (const char* policy : {"full", "kivi:group=16,residual=16", "snapkv:budget=40,window=8"}) {
    INFO(policy);
    Sequence sequence(Shape, policy);
    sequence.prefill(text, 0, 80);
    const Sequence fork = sequence.fork();
    const std::vector<Position> before = sequence.cache().positions({0, 0});
    CHECK(sequence.cache().key_positions({0, 0}) == before);
    sequence.cache().shift(0, 80, 25);
    CHECK(sequence.cache().next_position() == 105);
    CHECK(sequence.cache().key_positions({0, 0}) == before);
    CHECK(fork.positions()[0] == before);
    const auto here = sequence.cache().key_rows({0, 0}).segments(), there = fork.cache().key_rows({0, 0}).segments();
    REQUIRE(here.size() == there.size());
    for (std::size_t i = 0; i < here.size(); ++i) CHECK(here[i].block == there[i].block);
  }
}

TEST_CASE("Context shift of a full cache leaves the positions of one that never had the tokens, at no cost per slot") {
  const LayeredTokens text(Shape, 100, 74);
  Sequence sequence(Shape, "full");
  sequence.prefill(text, 0, 80);
  sequence.cache().remove(4, 40);
  sequence.cache().shift(40, 80, -36);
  for (const auto& positions : sequence.positions())
    for (std::size_t slot = 0; slot < 44; ++slot) REQUIRE(positions[slot] == static_cast<Position>(slot));
  CHECK(sequence.cache().next_position() == 44);
  CHECK(sequence.cache().stats().seen == 44);
  CHECK(sequence.cache().can_truncate(20) == Truncation::exact);
  REQUIRE(sequence.cache().truncate(20));
  CHECK(sequence.positions()[0].size() == 20);
}

TEST_CASE("can_truncate speaks of the positions where tokens stand after a shift") {
  const LayeredTokens text(Shape, 100, 75);
  Sequence sequence(Shape, "snapkv:budget=30,window=8");
  sequence.prefill(text, 0, 60);
  sequence.decode(text, 60, 10);
  sequence.cache().shift(0, 70, 5);
  CHECK(sequence.cache().can_truncate(65) == Truncation::exact);
  CHECK(sequence.cache().can_truncate(64) == Truncation::lost);
  CHECK(sequence.cache().truncate(65));
}

TEST_CASE("A shift that would bring tokens out of order is refused with a sentence, and changes nothing") {
  const LayeredTokens text(Shape, 100, 76);
  Sequence sequence(Shape, "full");
  KVCache<AnyPolicy>& cache = sequence.cache();
  sequence.prefill(text, 0, 20);
  const auto rows = sequence.rows();
  CHECK(error_text([&] { cache.shift(5, 8, 2); }) ==
        "shift: in layer 0, head 0 the token at position 7 would stand at 9, not before the one at 8; remove() makes "
        "room");
  CHECK(error_text([&] { cache.shift(5, 20, -1); }) ==
        "shift: in layer 0, head 0 the token at position 5 would stand at 4, not behind the one at 4; remove() makes "
        "room");
  CHECK(error_text([&] { cache.shift(0, 20, -1); }) == "shift: the token at position 0 would stand at position -1");
  CHECK(error_text([&] { cache.shift(3, 20, std::int64_t{1} << 31); }) ==
        "shift: by 2147483648 the tokens at positions 3 to 20 would leave the numbers that there are");
  cache.remove(5, 10);
  CHECK_NOTHROW(cache.shift(2, 5, 5));
  cache.shift(7, 10, -5);
  CHECK(cache.positions({0, 0}).size() == 15);
  CacheShape shape = Shape;
  shape.rotary = {};
  KVCache plain(shape, AnyPolicy::parse("full"));
  CHECK(error_text([&] { plain.shift(0, 3, 1); }) ==
        "CacheShape::rotary: shift() needs the model's rotary table to turn keys, but it is empty");
  CHECK(rows.size() == Shape.heads());
}

TEST_CASE("Every policy goes on after a context shift, saved and loaded too, as a fork of it does") {
  const LayeredTokens text(Shape, 200, 77);
  for (const PolicyCase& entry : all_policies()) {
    INFO(entry.text);
    Sequence sequence(Shape, entry.text);
    sequence.prefill(text, 0, 60);
    sequence.decode(text, 60, 10);
    sequence.cache().remove(10, 30);
    sequence.cache().shift(30, 70, -20);
    CHECK(sequence.cache().next_position() == 50);
    Sequence fork = sequence.fork(), loaded(Shape, entry.text);
    load_from(loaded.cache(), saved(sequence.cache()));
    sequence.decode(text, 70, 40);
    fork.decode(text, 70, 40);
    loaded.decode(text, 70, 40);
    CHECK(fork.rows() == sequence.rows());
    CHECK(loaded.rows() == sequence.rows());
    CHECK(loaded.positions() == sequence.positions());
    static_cast<void>(sequence.cache().truncate(45));
    sequence.decode(text, 120, 5);
    CHECK(sequence.cache().next_position() == 50);
  }
}
