#include <kvc/policies/ada_kv.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

#include <kvc/policies/external_scores.hpp>
#include <kvc/policies/h2o.hpp>
#include <kvc/policies/kivi.hpp>
#include <kvc/policies/snapkv.hpp>

using kvc::AdaKV;
using kvc::Event;
using kvc::ExternalScores;
using kvc::Position;
using kvc::Safeguard;
using support::FakeHead;

namespace {

/// The heads of a layer with the scores that the base, which is ExternalScores, shall give.
std::vector<FakeHead<AdaKV>> layer_of(AdaKV policy, const std::vector<std::vector<float>>& scores) {
  std::vector<FakeHead<AdaKV>> layer;
  const kvc::CacheShape shape{.query_heads = scores.size(), .kv_heads = scores.size(), .head_dim = 8};
  for (std::size_t h = 0; h < scores.size(); ++h) {
    layer.emplace_back(policy, shape, kvc::HeadId{0, static_cast<std::uint32_t>(h)});
    layer.back().append(scores[h].size());
    layer.back().observe(Event::prompt_end, scores[h].size(), scores[h]);
  }
  return layer;
}

std::vector<float> random_scores(std::size_t count, unsigned seed, float spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> scores(count);
  for (float& score : scores) score = normal(random);
  return scores;
}

std::size_t total(const std::vector<std::size_t>& budgets) {
  return std::accumulate(budgets.begin(), budgets.end(), std::size_t{0});
}

}  // namespace

TEST_CASE("AdaKV without a floor lets the best tokens of the whole layer stay") {
  auto layer = layer_of({.base = ExternalScores{}, .budget = 2, .floor_alpha = 0}, {{9, 8, 7, 1}, {6, 0, 0, 0}});
  CHECK(support::end_prompt(layer) == std::vector<std::size_t>{3, 1});
  CHECK(layer[0].positions == std::vector<Position>{0, 1, 2});
  CHECK(layer[1].positions == std::vector<Position>{0});
}

TEST_CASE("AdaKV's interpolating floor follows the authors' formula") {
  const double alpha = GENERATE(0.2, 0.5, 1.0);
  std::vector<std::vector<float>> scores;
  for (unsigned h = 0; h < 4; ++h) scores.push_back(random_scores(100, h, float(h + 1)));
  auto layer = layer_of({.base = ExternalScores{}, .budget = 25, .floor_alpha = alpha}, scores);

  std::vector<std::pair<float, std::size_t>> all;
  for (std::size_t h = 0; h < 4; ++h)
    for (const float score : scores[h]) all.push_back({score, h});
  std::sort(all.begin(), all.end(), std::greater<>());
  std::vector<std::size_t> expected(4);
  for (std::size_t i = 0; i < 100; ++i) ++expected[all[i].second];
  for (std::size_t& won : expected)
    won = static_cast<std::size_t>(std::nearbyint(double(won) * (1 - alpha) + std::floor(alpha * 25)));

  CHECK(support::end_prompt(layer) == expected);
  for (std::size_t h = 0; h < 4; ++h) CHECK(layer[h].positions.size() == expected[h]);
}

TEST_CASE("AdaKV's minimum guarantees each head's best tokens and keeps the layer's sum exact") {
  std::vector<std::vector<float>> scores{random_scores(50, 1, 1), std::vector<float>(50, -100.0f)};
  auto layer =
      layer_of({.base = ExternalScores{}, .budget = 20, .floor_alpha = 0.2, .safeguard = Safeguard::minimum}, scores);
  CHECK(support::end_prompt(layer) == std::vector<std::size_t>{36, 4});  // int(0.2 * 20) = 4
}

TEST_CASE("AdaKV's minimum drops the layer's lowest scores where no guarantee interferes") {
  auto layer = layer_of({.base = ExternalScores{}, .budget = 3, .floor_alpha = 0.2, .safeguard = Safeguard::minimum},
                        {{9, 1, 8, 2, 7}, {6, 5, 3, 4, 0}});
  CHECK(support::end_prompt(layer) == std::vector<std::size_t>{3, 3});
  CHECK(layer[0].positions == std::vector<Position>{0, 2, 4});
  CHECK(layer[1].positions == std::vector<Position>{0, 1, 3});
}

TEST_CASE("AdaKV gives heads with equal scores equal budgets") {
  const Safeguard safeguard = GENERATE(Safeguard::interpolate, Safeguard::minimum);
  const std::vector<float> scores = random_scores(40, 3, 1);
  auto layer = layer_of({.base = ExternalScores{}, .budget = 10, .safeguard = safeguard}, {scores, scores, scores});
  CHECK(support::end_prompt(layer) == std::vector<std::size_t>{10, 10, 10});
}

TEST_CASE("AdaKV breaks ties for the older token, then for the lower head") {
  auto older = layer_of({.base = ExternalScores{}, .budget = 2, .floor_alpha = 0}, {{0, 1, 1, 1}, {1, 1, 0, 1}});
  support::end_prompt(older);
  CHECK(older[0].positions == std::vector<Position>{1, 2});
  CHECK(older[1].positions == std::vector<Position>{0, 1});

  auto lower = layer_of({.base = ExternalScores{}, .budget = 1, .floor_alpha = 0}, {{0, 1, 0}, {9, 1, 0}});
  CHECK(support::end_prompt(lower) == std::vector<std::size_t>{1, 1});
  CHECK(lower[0].positions == std::vector<Position>{1});
}

TEST_CASE("AdaKV lets NaN lose against every number, in its own head and in others") {
  const float nan = std::nanf("");
  auto layer =
      layer_of({.base = ExternalScores{}, .budget = 2, .floor_alpha = 0}, {{nan, nan, nan, -5}, {1, -9, 2, nan}});
  CHECK(support::end_prompt(layer) == std::vector<std::size_t>{1, 3});
  CHECK(layer[0].positions == std::vector<Position>{3});
  CHECK(layer[1].positions == std::vector<Position>{0, 1, 2});
}

TEST_CASE("AdaKV leaves what its base protects out of the competition") {
  const Safeguard safeguard = GENERATE(Safeguard::interpolate, Safeguard::minimum);
  auto layer = layer_of({.base = ExternalScores{.recent = 3}, .budget = 4, .floor_alpha = 0, .safeguard = safeguard},
                        {{9, 8, 0, 0, 0, 0}, {1, 2, 0, 0, 0, 0}});
  CHECK(support::end_prompt(layer) == std::vector<std::size_t>{5, 3});
  CHECK(layer[0].positions == std::vector<Position>{0, 1, 3, 4, 5});
  CHECK(layer[1].positions == std::vector<Position>{3, 4, 5});
}

TEST_CASE("AdaKV evicts nothing while the layer fits its budgets, however uneven its heads") {
  auto layer = layer_of({.base = ExternalScores{}, .budget = 4}, {{1, 1, 1, 1, 1, 1}, {1, 1}});
  support::end_prompt(layer);
  CHECK(layer[0].positions.size() == 6);
  CHECK(layer[1].positions.size() == 2);
}

TEST_CASE("AdaKV's sum may exceed the layer's budget by rounding only") {
  std::vector<std::vector<float>> scores;
  for (unsigned h = 0; h < 8; ++h) scores.push_back(random_scores(300, h, float(h + 1)));
  auto layer = layer_of({.base = ExternalScores{}, .budget = 64, .floor_alpha = 0.5}, scores);
  const std::size_t sum = total(support::end_prompt(layer));
  CHECK(sum + 4 >= 8 * 64);
  CHECK(sum <= 8 * 64 + 4);
}

TEST_CASE("AdaKV does nothing while decoding") {
  auto layer = layer_of({.base = ExternalScores{}, .budget = 2}, {{1, 2, 3, 4}});
  CHECK(layer[0].plan(Event::decode).kept_count() == 4);
}

TEST_CASE("AdaKV's base observes by itself, with memory of its own") {
  FakeHead head(AdaKV{.base = kvc::H2O{.recent = 2}, .budget = 6});
  head.append(20);
  head.observe(Event::prompt_end, 20);
  float mass = 0;
  for (const kvc::H2O::Slot& slot : head.template member_slots<kvc::H2O>(0)) mass += slot.mass;
  CHECK(std::abs(mass - 40) < 1e-3f);  // 20 queries of two heads, each row sums to 1
  head.apply(head.plan(Event::prompt_end));
  CHECK(head.positions.size() == 6);
}

TEST_CASE("what AdaKV's base protects depends on the average budget, not on what a head has won") {
  const kvc::CacheShape shape{.query_heads = 2, .kv_heads = 2, .head_dim = 8};
  std::vector<FakeHead<AdaKV>> layer;
  for (std::uint32_t h = 0; h < 2; ++h) {
    layer.emplace_back(AdaKV{.base = kvc::H2O{}, .budget = 8, .floor_alpha = 0}, shape, kvc::HeadId{0, h});
    layer.back().append(20);
    const std::span<kvc::H2O::Slot> slots = layer.back().member_slots<kvc::H2O>(0);  // H2O protects half of its budget
    for (std::size_t slot = 0; slot < 20; ++slot) slots[slot].mass = h == 0 ? float(20 - slot) : 0.0f;
  }
  CHECK(support::end_prompt(layer) == std::vector<std::size_t>{12, 4});
  CHECK(layer[0].positions == support::joined(support::positions_between(0, 8), support::positions_between(16, 20)));
  CHECK(layer[1].positions == support::positions_between(16, 20));
}

TEST_CASE("AdaKV's budget, not its base's, decides") {
  FakeHead head(AdaKV{.base = kvc::SnapKV{.budget = 3, .window = 4, .kernel = 1}, .budget = 10});
  head.append(30);
  head.apply(head.plan(Event::prompt_end));
  CHECK(head.positions.size() == 10);
  REQUIRE_NOTHROW(head.policy.validate(head.shape));
}

TEST_CASE("AdaKV refuses what its base refuses with this budget, and a floor outside [0, 1]") {
  CHECK(support::error_text([] { AdaKV{.base = kvc::SnapKV{.window = 32}, .budget = 32}.validate({}); }) ==
        "SnapKV: window + 1 (33) must not exceed the budget (32)");
  CHECK(support::error_text([] { AdaKV{.base = kvc::KIVI{}}.validate({}); }) ==
        "AdaKV: base must be a policy that scores the slots of a head or of a layer");
  REQUIRE_THROWS_AS((AdaKV{.base = kvc::Member()}.validate({})), kvc::Error);
  REQUIRE_THROWS_AS((AdaKV{.floor_alpha = 1.5}.validate({})), kvc::Error);
  REQUIRE_THROWS_AS((AdaKV{.base = ExternalScores{.positions = kvc::Positions::in_cache}}.validate({})), kvc::Error);
}
