#include "catch_shim.hpp"

#include <numeric>

#include "support/for_each_policy.hpp"
#include "support/sequence.hpp"

// What must be the same to the last bit: with room for everything, in chunks, in forks, with heads in another order.

using namespace kvc;
using namespace support;

namespace {

constexpr std::size_t Prompt = 100, Steps = 40;
const CacheShape Shape = small_shape();

void check_same(const Sequence& a, const Sequence& b) {
  // In parentheses: nobody wants to read both sides where they differ.
  CHECK(a.positions() == b.positions());
  CHECK((a.rows() == b.rows()));
  CHECK((a.answers() == b.answers()));
}

}  // namespace

TEST_CASE("With room for every token each policy gives the bits of the full cache") {
  const LayeredTokens text(Shape, Prompt + Steps, 11);
  Sequence full(Shape, "full");
  full.prefill(text, 0, Prompt);
  full.decode(text, Prompt, Steps);
  for_each_policy(Invariant::room, [&](const PolicyCase& entry) {
    Sequence sequence(Shape, entry.roomy);
    sequence.prefill(text, 0, Prompt);
    sequence.decode(text, Prompt, Steps);
    check_same(sequence, full);
  });
}

TEST_CASE("A prompt in parts of 1, 7 and 16 tokens gives the bits of the prompt whole") {
  const LayeredTokens text(Shape, Prompt + Steps, 12);
  for_each_policy(Invariant::chunks, [&](const PolicyCase& entry) {
    Sequence whole(Shape, entry.text);
    whole.prefill(text, 0, Prompt);
    whole.decode(text, Prompt, Steps);
    for (const std::size_t chunk : {1u, 7u, 16u}) {
      Sequence parts(Shape, entry.text);
      parts.prefill(text, 0, Prompt, chunk);
      parts.decode(text, Prompt, Steps);
      INFO("parts of " << chunk);
      check_same(parts, whole);
    }
  });
}

TEST_CASE("A fork and its parent go their own ways, each as a cache that was fed the same alone") {
  const LayeredTokens text(Shape, 300, 13), other(Shape, 300, 14);
  for_each_policy(Invariant::fork, [&](const PolicyCase& entry) {
    // Forked in the middle of generation, the parent goes on first, then the fork, then both in turns.
    Sequence parent(Shape, entry.text), twin(Shape, entry.text), other_twin(Shape, entry.text);
    for (Sequence* sequence : {&parent, &twin, &other_twin}) {
      sequence->prefill(text, 0, Prompt);
      sequence->decode(text, Prompt, 10);
    }
    Sequence fork = parent.fork();
    const Sequence untouched = parent.fork();
    const auto before = untouched.rows();
    parent.decode(text, 110, 20);
    fork.decode(other, 110, 20);
    for (std::size_t step = 130; step < 150; ++step) {
      fork.decode(other, step, 1);
      parent.decode(text, step, 1);
    }
    twin.decode(text, 110, 40);
    const std::size_t answered = other_twin.answers()[0].size();
    other_twin.decode(other, 110, 40);
    check_same(parent, twin);
    CHECK(fork.positions() == other_twin.positions());
    CHECK((fork.rows() == other_twin.rows()));
    for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
      const std::vector<float>& all = other_twin.answers()[layer];
      CHECK((fork.answers()[layer] == std::vector<float>(all.begin() + std::ptrdiff_t(answered), all.end())));
    }
    CHECK((untouched.rows() == before));
    CHECK((fork.rows() != parent.rows()));
  });
}

namespace {

/// A text whose KV heads, with their groups of query heads, stand in the reverse order.
struct Reversed {
  std::vector<float> q, k, v, scores;

  Reversed(const CacheShape& shape, const Tokens& tokens) {
    for (std::size_t t = 0; t < tokens.q.count; ++t)
      for (std::size_t head = shape.kv_heads; head-- > 0;) {
        append(q, tokens.q[t], head, shape.group() * shape.head_dim);
        append(k, tokens.k[t], head, shape.head_dim);
        append(v, tokens.v[t], head, shape.values_dim());
        scores.push_back(tokens.scores[t * shape.kv_heads + head]);
      }
  }
  Tokens tokens(std::size_t count) const {
    return {{q.data(), count, q.size() / count},
            {k.data(), count, k.size() / count},
            {v.data(), count, v.size() / count},
            scores};
  }
  static void append(std::vector<float>& to, std::span<const float> row, std::size_t head, std::size_t width) {
    const auto part = row.subspan(head * width, width);
    to.insert(to.end(), part.begin(), part.end());
  }
};

}  // namespace

TEST_CASE("KV heads in another order give the result in that order") {
  CacheShape shape = small_shape(3);
  shape.query_heads = 9;
  shape.kv_heads = 3;
  const LayeredTokens text(shape, Prompt + Steps, 15);
  for_each_policy(Invariant::heads, [&](const PolicyCase& entry) {
    Sequence straight(shape, entry.text), reversed(shape, entry.text);
    const auto feed = [&](std::size_t first, std::size_t count) {
      std::vector<Reversed> others;
      for (std::size_t layer = 0; layer < shape.layers; ++layer)
        others.emplace_back(shape, text.tokens(layer, first, count));
      std::vector<Outputs> as(shape.layers, Outputs(shape, count)), bs = as;
      const auto tokens = [&](std::size_t layer) { return text.tokens(layer, first, count); };
      const auto reversed_tokens = [&](std::size_t layer) { return others[layer].tokens(count); };
      const auto rows_of = [count](std::vector<Outputs>& outs) {
        return [&outs, count](std::size_t layer) { return outs[layer].rows(0, count); };
      };
      if (count > 1) {
        prefill_whole(straight.cache(), tokens, rows_of(as));
        prefill_whole(reversed.cache(), reversed_tokens, rows_of(bs));
      }
      for (std::size_t layer = 0; layer < shape.layers; ++layer) {
        Outputs &a = as[layer], &b = bs[layer];
        if (count == 1) {
          straight.cache().decode(layer, tokens(layer), a.rows(0, 1));
          reversed.cache().decode(layer, reversed_tokens(layer), b.rows(0, 1));
        }
        std::vector<float> expected;
        for (std::size_t t = 0; t < count; ++t)
          for (std::size_t head = 3; head-- > 0;)
            Reversed::append(expected, a.rows(t, 1)[0], head, shape.group() * shape.values_dim());
        REQUIRE((b.values() == expected));
      }
    };
    feed(0, Prompt);
    for (std::size_t step = 0; step < Steps; ++step) feed(Prompt + step, 1);
    const auto a = straight.rows(), b = reversed.rows();
    const auto kept = straight.positions(), permuted = reversed.positions();
    for (std::size_t i = 0; i < shape.heads(); ++i) {
      const std::size_t mirror = i / 3 * 3 + 2 - i % 3;
      CHECK(kept[i] == permuted[mirror]);
      CHECK((a[i] == b[mirror]));
    }
  });
}
