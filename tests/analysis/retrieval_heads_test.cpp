#include <kvc/analysis/retrieval_heads.hpp>
#include <kvc/simd/isa.hpp>
#include <kvc/thread_pool.hpp>

#include <cmath>
#include <vector>

#include "catch_shim.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;

namespace {

std::string complaint(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}

/// The scores of one query head by their definition: the whole matrix in double, without row and column 0.
struct Naive {
  double echo = 0, induction = 0;
};
Naive naive_scores(const CacheShape& shape, RepeatedBlock text, ConstRows q, ConstRows k, std::size_t head) {
  const std::size_t n = text.tokens(), dim = shape.head_dim;
  std::vector<std::vector<double>> a;
  for (std::size_t i = 0; i < n; ++i) {
    std::vector<double> row(i + 1);
    double sum = 0;
    for (std::size_t j = 0; j <= i; ++j) {
      double logit = 0;
      for (std::size_t c = 0; c < dim; ++c)
        logit += double(q[i][head * dim + c]) * double(k[j][head / shape.group() * dim + c]);
      logit *= double(shape.logit_scale());
      if (shape.softcap > 0) logit = double(shape.softcap) * std::tanh(logit / double(shape.softcap));
      sum += row[j] = std::exp(logit);
    }
    for (double& x : row) x /= sum;
    if (i > 0) a.emplace_back(row.begin() + 1, row.end());
  }
  Naive scores;
  for (std::size_t i = text.block; i < a.size(); ++i)
    for (std::size_t j = i % text.block; j < i; j += text.block) {
      scores.echo += a[i][j] / double(a.size() - text.block);
      scores.induction += a[i][j + 1] / double(a.size() - text.block);
    }
  return scores;
}

/// A head over a block of 8 distinct tokens. Queries ask, sharply, for their own token; keys say what `named` tells of the
/// token at an index: itself, or the one before it.
HeadScores scores_of_sharp_head(std::size_t repeats, bool names_previous) {
  constexpr std::size_t Block = 8;
  const CacheShape shape{.head_dim = Block};
  const RepeatedBlock text{.block = Block, .repeats = repeats};
  std::vector<float> q(text.tokens() * Block), k(text.tokens() * Block);
  for (std::size_t i = 1; i < text.tokens(); ++i) {
    q[i * Block + (i - 1) % Block] = 1000;
    const std::size_t named = names_previous ? i + Block - 2 : i - 1;
    if (i > 1 || !names_previous) k[i * Block + named % Block] = 1;
  }
  HeadScorer scorer(shape, text);
  scorer.add(0, {q.data(), text.tokens(), Block}, {k.data(), text.tokens(), Block});
  return scorer.scores();
}

}  // namespace

TEST_CASE("a head that looks for the token after the last occurrence has induction 1 and echo 0") {
  const HeadScores scores = scores_of_sharp_head(4, true);
  CHECK(scores.induction[0] == Approx(1));
  CHECK(scores.echo[0] == Approx(0).margin(1e-6));
}

TEST_CASE("a head that looks for its own token shares its attention among the repeats so far") {
  const HeadScores scores = scores_of_sharp_head(4, false);
  // In repeat m there are m earlier ones and the token itself.
  CHECK(scores.echo[0] == Approx((1.0 / 2 + 2.0 / 3 + 3.0 / 4) / 3));
  CHECK(scores.induction[0] == Approx(0).margin(1e-6));
}

TEST_CASE("head scores are those of the whole attention matrix, at every instruction set and with any executor") {
  for (const float softcap : {0.0f, 5.0f})
    for (const RepeatedBlock text : {RepeatedBlock{7, 3}, RepeatedBlock{150, 4}, RepeatedBlock{1, 9}}) {
      const CacheShape shape{.layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 16, .softcap = softcap};
      const support::RandomTokens random(shape, text.tokens(), 61);
      const Tokens tokens = random.tokens(0, text.tokens());
      for (const Isa isa : AllIsas) {
        if (!is_available(isa)) continue;
        const ScopedIsa scoped(isa);
        INFO("block " << text.block << " at " << to_string(isa));
        HeadScorer alone(shape, text), shared(shape, text);
        ThreadPool pool(3);
        for (std::size_t layer = 0; layer < 2; ++layer) {
          alone.add(layer, tokens.q, tokens.k);
          shared.add(1 - layer, tokens.q, tokens.k, pool);
        }
        CHECK(alone.scores().echo == shared.scores().echo);
        CHECK(alone.scores().induction == shared.scores().induction);
        for (std::size_t head = 0; head < 6; ++head) {
          const Naive expected = naive_scores(shape, text, tokens.q, tokens.k, head);
          CHECK(double(alone.scores().echo[6 + head]) == Approx(expected.echo).margin(1e-6));
          CHECK(double(alone.scores().induction[head]) == Approx(expected.induction).margin(1e-6));
        }
      }
    }
}

TEST_CASE("a KV head is as good as its best query head") {
  const std::vector<float> scores{1, 5, 2, 0, -1, -3};
  CHECK(best_of_groups(scores, 2) == std::vector<float>{5, 2, -1});
  CHECK(best_of_groups(scores, 1) == scores);
}

TEST_CASE("heads are selected by rounding half to even, and ties enlarge the set") {
  using Flags = std::vector<std::uint8_t>;
  const std::vector<float> scores{4, 1, 3, 2};
  CHECK(select_heads(scores, 0.125) == Flags{0, 0, 0, 0});  // 0.5 rounds to 0
  CHECK(select_heads(scores, 0.375) == Flags{1, 0, 1, 0});  // 1.5 rounds to 2
  CHECK(select_heads(scores, 0.625) == Flags{1, 0, 1, 0});  // 2.5 rounds to 2
  CHECK(select_heads(scores, 1) == Flags{1, 1, 1, 1});
  CHECK(select_heads(std::vector<float>{1, 2, 2, 2}, 0.25) == Flags{0, 1, 1, 1});
  CHECK(complaint([&] { select_heads(scores, 1.5); }) == "select_heads: the share must lie in [0, 1], got 1.500000");
}

TEST_CASE("retrieval heads are the best by induction together with the best by echo, over all layers") {
  const HeadScores scores{.layers = 2,
                          .query_heads = 4,
                          .kv_heads = 2,
                          .echo = {0, 0, 0, 0, 0, 0, 0.9f, 0},
                          .induction = {0, 0.8f, 0.1f, 0.2f, 0, 0, 0.3f, 0}};
  CHECK(retrieval_heads(scores, {.induction = 0.25, .echo = 0.25}) == HeadTable(2, 2, {1, 0, 0, 1}));
  CHECK(retrieval_heads(scores, {.induction = 0.25, .echo = 0}) == HeadTable(2, 2, {1, 0, 0, 0}));
}

TEST_CASE("a scorer refuses what is no repeated block of its model") {
  const CacheShape shape{.layers = 2, .query_heads = 2, .kv_heads = 1, .head_dim = 8};
  CHECK(complaint([&] { HeadScorer(shape, {.block = 10, .repeats = 1}); }) ==
        "HeadScorer: a block of at least 1 token must be repeated at least 2 times, got 10 tokens 1 times");
  HeadScorer scorer(shape, {.block = 2, .repeats = 2});
  std::vector<float> q(5 * 16), k(5 * 8);
  CHECK(complaint([&] {
          scorer.add(2, {q.data(), 5, 16}, {k.data(), 5, 8});
        }) == "HeadScorer: layer 2 of a model with 2 layers");
  CHECK(complaint([&] {
          scorer.add(0, {q.data(), 4, 16}, {k.data(), 5, 8});
        }) == "HeadScorer: q: got [4, 16], expected [5, 16]");
  CHECK(complaint([&] {
          scorer.add(0, {q.data(), 5, 16}, {k.data(), 5, 4});
        }) == "HeadScorer: k: got [5, 4], expected [5, 8]");
  CHECK(complaint([&] { scorer.scores(); }) == "HeadScorer: layer 0 has not been added");
  k[3 * 8] = NAN;
  CHECK(complaint([&] {
          scorer.add(0, {q.data(), 5, 16}, {k.data(), 5, 8});
        }) == "HeadScorer: k: row 3 of layer 0 is not finite");
}
