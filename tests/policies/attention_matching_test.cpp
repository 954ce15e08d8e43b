// Attention Matching against the plainest arithmetic, in double.
#include "kvc/policies/attention_matching.hpp"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/fake_head.hpp"
#include "support/multiplicity_listener.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;
using support::MultiplicityListener;

namespace {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;

const CacheShape Shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 32};
constexpr std::size_t Prompt = 160, Probe = 120;
constexpr CacheOptions Exact{.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact};

const support::LayeredTokens& text() {
  static const support::LayeredTokens tokens(Shape, Prompt + Probe, 5);
  return tokens;
}
/// Feeds the prompt and, if wanted, the probe; in one part or in two.
void feed(CacheCore& cache, bool probes, std::size_t parts = 1) {
  for (std::size_t part = 0; part < parts; ++part)
    for (std::size_t layer = 0; layer < Shape.layers; ++layer)
      cache.prefill(layer, text().tokens(layer, part * Prompt / parts, Prompt / parts), {}, false);
  for (std::size_t part = 0; probes && part < parts; ++part)
    for (std::size_t layer = 0; layer < Shape.layers; ++layer)
      cache.probe(layer, text().tokens(layer, Prompt + part * Probe / parts, Probe / parts), {}, 0, Position(Prompt));
}
Matrix matrix(ConstRows rows, std::size_t first, std::size_t columns) {
  Matrix result(Eigen::Index(rows.count), Eigen::Index(columns));
  for (std::size_t row = 0; row < rows.count; ++row)
    for (std::size_t c = 0; c < columns; ++c) result(Eigen::Index(row), Eigen::Index(c)) = double(rows[row][first + c]);
  return result;
}

/// What should be kept of a head, by the book.
struct Expected {
  std::vector<Eigen::Index> kept;
  Vector tokens;
  Matrix values;
};
Expected expected(std::size_t layer, std::size_t head, const AttentionMatching& policy, std::size_t budget,
                  bool probes) {
  const std::size_t first = probes ? Prompt : 0, count = probes ? Probe : Prompt, group = Shape.group();
  const Tokens prompt = text().tokens(layer, 0, Prompt), asked = text().tokens(layer, first, count);
  const Matrix keys = matrix(prompt.k, head * Shape.head_dim, Shape.head_dim),
               values = matrix(prompt.v, head * Shape.values_dim(), Shape.values_dim());
  // Every second token's queries are kept.
  Matrix logits(Eigen::Index(count / 2 * group), Eigen::Index(Prompt));
  for (std::size_t token = 0; token < count; token += 2)
    for (std::size_t g = 0; g < group; ++g) {
      const auto query = matrix(asked.q.subrows(token, 1), (head * group + g) * Shape.head_dim, Shape.head_dim);
      logits.row(Eigen::Index(token / 2 * group + g)) = query * keys.transpose() / std::sqrt(double(Shape.head_dim));
    }
  const Matrix exponentials = (logits.colwise() - logits.rowwise().maxCoeff()).array().exp();
  const Vector sums = exponentials.rowwise().sum();
  const Matrix attention = sums.cwiseInverse().asDiagonal() * exponentials;
  const Vector scores = attention.cwiseAbs2().colwise().mean().cwiseSqrt().transpose();

  Expected result;
  result.kept.resize(Prompt);
  std::iota(result.kept.begin(), result.kept.end(), Eigen::Index{0});
  std::ranges::stable_sort(result.kept, std::greater<>(), [&](Eigen::Index slot) { return scores[slot]; });
  result.kept.resize(budget);
  std::ranges::sort(result.kept);

  const Matrix system = exponentials(Eigen::all, result.kept);
  const auto bounded = [&](const Vector& numbers) {
    return Vector(numbers.cwiseMax(policy.least).cwiseMin(policy.most));
  };
  result.tokens = bounded((system.transpose() * system).ldlt().solve(system.transpose() * sums));
  const double length = std::pow(system.jacobiSvd().singularValues()[0], 2);
  for (std::size_t step = 0; step < policy.steps; ++step)
    result.tokens = bounded(result.tokens - system.transpose() * (system * result.tokens - sums) / length);
  Matrix shares = system * result.tokens.asDiagonal();
  shares = Matrix(shares.rowwise().sum().cwiseInverse().asDiagonal() * shares);
  result.values = (shares.transpose() * shares).ldlt().solve(shares.transpose() * (attention * values));
  return result;
}

}  // namespace

TEST_CASE("Attention Matching keeps the most attended tokens, and fits their numbers and values, as the book says") {
  for (const bool probes : {true, false})
    for (const std::size_t parts : {std::size_t{1}, std::size_t{2}}) {
      const AttentionMatching policy{.budget = 40, .largest = 1e9};
      KVCache cache(Shape, policy | MultiplicityListener{}, Exact);
      feed(cache, probes, parts);
      cache.compress();
      for (std::size_t layer = 0; layer < Shape.layers; ++layer)
        for (std::size_t head = 0; head < Shape.kv_heads; ++head) {
          const HeadId id{std::uint32_t(layer), std::uint32_t(head)};
          const Expected wanted = expected(layer, head, policy, 40, probes);
          const std::vector<Position> positions = cache.positions(id);
          REQUIRE(std::vector<Eigen::Index>(positions.begin(), positions.end()) == wanted.kept);
          std::vector<float> keys(40 * 16), values(40 * 32);
          cache.gather(id, {keys.data(), 40, 16}, {values.data(), 40, 32});
          double squares = 0, missed = 0;
          for (Eigen::Index slot = 0; slot < 40; ++slot) {
            const double tokens = double(cache.state<MultiplicityListener>(id).tokens.at(std::size_t(slot)));
            CHECK(std::abs(tokens - wanted.tokens[slot]) < 2e-3 * wanted.tokens[slot]);
            for (Eigen::Index c = 0; c < 32; ++c) {
              squares += std::pow(wanted.values(slot, c), 2);
              missed += std::pow(wanted.values(slot, c) - double(values[std::size_t(slot * 32 + c)]), 2);
            }
          }
          CHECK(missed < 1e-4 * squares);  // the numbers are rounded to half precision before values are fitted to them
        }
    }
}

TEST_CASE("Attention Matching without values, or without multiplicities, leaves them alone") {
  KVCache numbers(Shape, AttentionMatching{.budget = 40, .values = false} | MultiplicityListener{}, Exact),
      values(Shape, AttentionMatching{.budget = 40, .multiplicities = false} | MultiplicityListener{}, Exact);
  for (CacheCore* cache : {static_cast<CacheCore*>(&numbers), static_cast<CacheCore*>(&values)}) {
    feed(*cache, true);
    cache->compress();
  }
  CHECK(values.state<MultiplicityListener>({0, 0}).tokens.empty());
  CHECK(numbers.state<MultiplicityListener>({0, 0}).tokens.size() == 40);
  std::vector<float> keys(40 * 16), kept(40 * 32), fitted(40 * 32);
  numbers.gather({0, 0}, {keys.data(), 40, 16}, {kept.data(), 40, 32});
  values.gather({0, 0}, {keys.data(), 40, 16}, {fitted.data(), 40, 32});
  CHECK(kept != fitted);
  const std::vector<Position> positions = numbers.positions({0, 0});
  for (std::size_t slot = 0; slot < 40; ++slot)
    for (std::size_t c = 0; c < 32; ++c)
      CHECK(kept[slot * 32 + c] == text().tokens(0, std::size_t(positions[slot]), 1).v[0][c]);
}

TEST_CASE("Attention Matching with more slots than queries, or equal keys, gives numbers and values that are finite") {
  KVCache few(Shape, AttentionMatching{.budget = 120, .rows = 20}, Exact);
  feed(few, true);
  few.compress();
  KVCache equal(Shape, AttentionMatching{.budget = 40}, Exact);
  const std::vector<float> same(Prompt * 32, 1.0f);
  for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
    Tokens tokens = text().tokens(layer, 0, Prompt);
    tokens.k = {same.data(), Prompt, 32};
    equal.prefill(layer, tokens, {});
  }
  for (const CacheCore* cache : {static_cast<CacheCore*>(&few), static_cast<CacheCore*>(&equal)}) {
    support::Outputs out(Shape, 1);
    cache->attend(1, text().tokens(1, 0, 1).q, out.rows(0, 1));
    CHECK(std::ranges::all_of(out.values(), [](float x) { return std::isfinite(x) && std::abs(x) < 100; }));
  }
}

TEST_CASE("Attention Matching keeps values near those given where least squares would make them many times as large") {
  const auto largest_of = [](const AttentionMatching& policy) {
    KVCache cache(Shape, policy, Exact);
    feed(cache, true);
    cache.compress();
    std::vector<float> keys(40 * 16), values(40 * 32);
    cache.gather({0, 0}, {keys.data(), 40, 16}, {values.data(), 40, 32});
    float most = 0;
    for (const float x : values) most = std::max(most, std::abs(x));
    return most;
  };
  CHECK(largest_of({.budget = 40, .largest = 1e9}) > 60);
  CHECK(largest_of({.budget = 40}) < 16);
}

TEST_CASE("Attention Matching says what it cannot do") {
  const auto complaint = [](const AttentionMatching& policy) {
    return support::error_text([&] { CacheCore(Shape, stages_of(policy)); });
  };
  CHECK(complaint({.least = 2}) ==
        "AttentionMatching: least (2.000000) must lie in (0, 1] and most (20.085537) in [1, 10000)");
  CHECK(complaint({.rows = 0}).find("AttentionMatching: rows") == 0);
  KVCache cache(Shape, AttentionMatching{.budget = 40}, Exact);
  feed(cache, false);
  cache.compress();
  CHECK_NOTHROW(cache.compress());
}
