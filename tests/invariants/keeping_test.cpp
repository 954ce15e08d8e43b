#include "catch_shim.hpp"

#include <cmath>
#include <numeric>

#include "kvc/policies/ada_kv.hpp"
#include "kvc/policies/h2o.hpp"
#include "support/fake_head.hpp"
#include "support/for_each_policy.hpp"
#include "support/sequence.hpp"

// Which slots stay: as many as the budget says, the protected ones, the older of equals, never those scored NaN.

using namespace kvc;
using namespace support;

namespace {

constexpr std::size_t Prompt = 100, Steps = 40;
const CacheShape Shape = small_shape();

/// How many heads, from the first on, share what they may hold: one, those of a layer, or all.
std::size_t sharing_heads(const Sequence& sequence) {
  std::size_t heads = 1;
  for (const auto& stage : sequence.cache().stages()) {
    if (stage->verbs().allocate) heads = std::max(heads, Shape.kv_heads);
    if (stage->verbs().allocate_all) heads = Shape.heads();
  }
  return heads;
}

/// After an act: exactly the budget, in each head or, where heads compete, in all of them up to rounding of each.
void check_slots(const PolicyCase& entry, const Sequence& sequence) {
  const auto heads = sequence.positions();
  const std::size_t sharing = sharing_heads(sequence);
  for (std::size_t first = 0; first < Shape.heads(); first += sharing) {
    std::size_t allowed = 0, held = 0;
    for (std::size_t head = first; head < first + sharing; ++head) {
      const HeadId id = Sequence::heads(Shape)[head];
      allowed += std::min(entry.slots ? entry.slots : sequence.limit(id), sequence.cache().stats(id).seen);
      held += heads[head].size();
    }
    CHECK(held <= allowed + (sharing == 1 ? 0 : sharing));
    CHECK(held + (sharing == 1 ? 0 : sharing) >= allowed);
  }
}

}  // namespace

TEST_CASE("Heads hold their budget once the policy acted, and what is generated stays where it acts no more") {
  const LayeredTokens text(Shape, Prompt + Steps, 1);
  for_each_policy(Invariant::budget, [&](const PolicyCase& entry) {
    Sequence sequence(Shape, entry.text);
    sequence.prefill(text, 0, Prompt);
    check_slots(entry, sequence);
    const auto after_prompt = sequence.positions();
    for (std::size_t step = 0; step < Steps; ++step) {
      sequence.decode(text, Prompt + step, 1);
      if (entry.acts == Acts::every_pass) check_slots(entry, sequence);
    }
    if (entry.acts == Acts::prompt_end)
      for (std::size_t head = 0; head < Shape.heads(); ++head)
        CHECK(sequence.positions()[head].size() == after_prompt[head].size() + Steps);
  });
}

TEST_CASE("Protected slots stay") {
  const LayeredTokens text(Shape, Prompt + Steps, 2);
  for_each_policy(Invariant::protection, [&](const PolicyCase& entry) {
    Sequence sequence(Shape, entry.text);
    const auto check = [&](std::size_t seen) {
      for (const std::vector<Position>& kept : sequence.positions()) {
        REQUIRE(kept.size() >= entry.first + entry.last);
        for (std::size_t i = 0; i < entry.first; ++i) CHECK(kept[i] == Position(i));
        for (std::size_t i = 0; i < entry.last; ++i) CHECK(kept[kept.size() - 1 - i] == Position(seen - 1 - i));
      }
    };
    sequence.prefill(text, 0, Prompt);
    check(Prompt);
    for (std::size_t step = 0; step < Steps; ++step) {
      sequence.decode(text, Prompt + step, 1);
      check(Prompt + step + 1);
    }
  });
}

namespace {

/// Token 0 takes all attention to the last bit, the others none; all keys have the same norm, all tokens the same external score.
struct EqualTokens {
  std::vector<float> q, k, v, scores;
  std::size_t count;

  EqualTokens(const CacheShape& shape, std::size_t tokens)
      : q(tokens * shape.query_heads * shape.head_dim, 0.0f),
        k(tokens * shape.kv_heads * shape.head_dim, 0.0f),
        v(tokens * shape.kv_heads * shape.values_dim(), 1.0f),
        scores(tokens * shape.kv_heads, 0.5f),
        count(tokens) {
    for (std::size_t i = 0; i < q.size(); i += shape.head_dim) q[i] = 100;
    for (std::size_t i = 0; i < k.size(); i += shape.head_dim)
      k[i] = i < shape.kv_heads * shape.head_dim ? 100.0f : -100.0f;
  }
  Tokens tokens() const {
    return {{q.data(), count, q.size() / count},
            {k.data(), count, k.size() / count},
            {v.data(), count, v.size() / count},
            scores};
  }
};

}  // namespace

TEST_CASE("Of slots with equal scores the older stay") {
  const EqualTokens equal(Shape, Prompt);
  for_each_policy(Invariant::ties, [&](const PolicyCase& entry) {
    Sequence sequence(Shape, entry.text);
    prefill_whole(
        sequence.cache(), [&](std::size_t) { return equal.tokens(); }, [](std::size_t) { return Rows<float>(); });
    for (const std::vector<Position>& kept : sequence.positions()) {
      REQUIRE(kept.size() >= entry.last);
      REQUIRE(kept.size() < Prompt);
      const std::size_t old = kept.size() - entry.last;
      std::vector<Position> expected = joined(positions_between(0, Position(old)),
                                              positions_between(Position(Prompt - entry.last), Position(Prompt)));
      CHECK(kept == expected);
    }
  });
}

TEST_CASE("Slots to which the engine gave NaN go first") {
  const LayeredTokens text(Shape, Prompt, 3);
  for_each_policy(Invariant::nan_scores, [&](const PolicyCase& entry) {
    Sequence sequence(Shape, entry.text);
    Tokens tokens = text.tokens(0, 0, Prompt);
    std::vector<float> scores(tokens.scores.begin(), tokens.scores.end());
    for (std::size_t t = 0; t < Prompt; ++t)
      for (std::size_t head = 0; head < Shape.kv_heads; ++head)
        if (t % 3 != 0) scores[t * Shape.kv_heads + head] = NAN;
    tokens.scores = scores;
    for (std::size_t layer = 0; layer < Shape.layers; ++layer) sequence.cache().prefill(layer, tokens, {});
    for (const std::vector<Position>& kept : sequence.positions()) {
      CHECK(kept.size() == 30);
      for (std::size_t i = 0; i + entry.last < kept.size(); ++i) CHECK(kept[i] % 3 == 0);
    }
  });
}

namespace {

/// Scores every third slot 1, the others NaN.
struct MostlyNan {
  Budget budget = 10;
  void score(const Head<MostlyNan>& head, std::span<float> scores) const {
    for (std::size_t slot = 0; slot < head.size(); ++slot) scores[slot] = slot % 3 == 0 ? 1 : NAN;
  }
};

template <class P>
std::vector<std::vector<Position>> kept_by(const P& policy) {
  const LayeredTokens text(Shape, 40, 4);
  KVCache cache(Shape, policy);
  std::vector<std::vector<Position>> kept;
  for (std::uint32_t layer = 0; layer < Shape.layers; ++layer) cache.prefill(layer, text.tokens(layer, 0, 40), {});
  for (const HeadId id : Sequence::heads(Shape)) kept.push_back(cache.positions(id));
  return kept;
}

}  // namespace

TEST_CASE("Whoever scores NaN loses, under the default eviction and under AdaKV; of NaNs the older stays") {
  const std::vector<Position> thirds{0, 3, 6, 9, 12, 15, 18, 21, 24, 27};
  for (const auto& kept : kept_by(MostlyNan{.budget = 10})) CHECK(kept == thirds);
  for (const auto& kept : kept_by(AdaKV{.base = MostlyNan{}, .budget = 10})) CHECK(kept == thirds);
  for (const auto& kept : kept_by(AdaKV{.base = MostlyNan{}, .budget = 10, .safeguard = Safeguard::minimum}))
    CHECK(kept == thirds);
  for (const auto& kept : kept_by(MostlyNan{.budget = 16}))  // 14 thirds, then the oldest of the others
    CHECK(kept == std::vector<Position>{0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39});
}

TEST_CASE("A mass of H2O that became NaN loses") {
  FakeHead<H2O> fake(H2O{.budget = 6, .recent = 2});
  fake.append(10);
  for (std::size_t slot = 0; slot < 10; ++slot) fake.slots[slot].mass = slot % 2 ? NAN : 1.0f;
  fake.apply(fake.plan(Event::decode));
  CHECK(fake.positions == std::vector<Position>{0, 2, 4, 6, 8, 9});
}

TEST_CASE("A policy that needs a prompt's queries, or a probe, refuses to act without them, and nothing changes") {
  const LayeredTokens text(Shape, Prompt + Steps, 5);
  for (const PolicyCase& entry : all_policies()) {
    if (entry.compresses) continue;
    INFO(entry.text);
    Sequence sequence(Shape, entry.text);
    sequence.prefill(text, 0, Prompt);
    sequence.decode(text, Prompt, Steps);
    const auto positions = sequence.positions();
    if (entry.acts != Acts::every_pass) try {
        sequence.cache().compress();
        FAIL("it acted all the same");
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::missing_feed);
      }
    CHECK(sequence.positions() == positions);
  }
}
