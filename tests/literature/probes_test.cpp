// Policies that learn from a probe, and policies made of others.
#include <tuple>

#include "catch_shim.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/policies/all.hpp"
#include "literature/kvzip.hpp"
#include "literature/rank_fusion.hpp"
#include "literature/trial.hpp"

using namespace literature;

namespace {

constexpr CacheOptions Exact{.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact};
const H2O Observed{.recent = 0, .normalize = true, .when = When::prompt_end};

/// The prompt, open, and then once more as a probe about its tokens from `begin` on.
void feed_and_probe(CacheCore& cache, std::size_t begin = 0) {
  for (std::size_t layer = 0; layer < Small.layers; ++layer)
    cache.prefill(layer, text().tokens(layer, 0, PromptTokens), {}, false);
  for (std::size_t layer = 0; layer < Small.layers; ++layer)
    cache.probe(layer, text().tokens(layer, 0, PromptTokens), {}, Position(begin), Position(PromptTokens));
}

/// What each token of the prompt receives from its repetition in a head: the maximum and the sum over all queries, in
/// double.
struct Received {
  std::vector<double> most, sum;
};
Received naive(HeadId id) {
  Received received{std::vector<double>(PromptTokens), std::vector<double>(PromptTokens)};
  for (std::size_t row = 0; row < PromptTokens; ++row)
    for (std::size_t g = 0; g < Small.group(); ++g) {
      // The slots that the query sees: the prompt, and the repetition up to its own token.
      const std::vector<double> weights = attention_from(id.layer, id.head * Small.group() + g, row, PromptTokens);
      const std::vector<double> repeated = attention_from(id.layer, id.head * Small.group() + g, row, row + 1);
      // Both are shares of their own sums; the repetition's first tokens are the prompt's, so weights[0] / repeated[0]
      // is the ratio of the sums.
      const double total = 1 + weights[0] / repeated[0];
      for (std::size_t slot = 0; slot < PromptTokens; ++slot) {
        received.most[slot] = std::max(received.most[slot], weights[slot] / total);
        received.sum[slot] += weights[slot] / total;
      }
    }
  return received;
}

template <class P>
std::vector<double> remembered(const CacheCore& cache, HeadId id, float kvc::Slot<P>::*member) {
  std::vector<double> values;
  for (const auto& slot : cache.slots<P>(id)) values.push_back(double(slot.*member));
  return values;
}

/// The positions of each head if the best of all scores stay; of equals the older token, then the lower head.
std::vector<std::vector<Position>> best_of_all(const std::vector<std::vector<double>>& scores, std::size_t total) {
  std::vector<std::tuple<double, std::size_t, std::size_t>> order;  // minus the score, slot, head
  for (std::size_t head = 0; head < scores.size(); ++head)
    for (std::size_t slot = 0; slot < scores[head].size(); ++slot) order.emplace_back(-scores[head][slot], slot, head);
  std::ranges::sort(order);
  std::vector<std::vector<Position>> kept(scores.size());
  for (std::size_t i = 0; i < total; ++i) kept[std::get<2>(order[i])].push_back(Position(std::get<1>(order[i])));
  for (auto& positions : kept) std::ranges::sort(positions);
  return kept;
}

}  // namespace

TEST_CASE("KVzip remembers the most that a query of the repetition attends to a token, or the sum over all") {
  for (const Reduce reduce : {Reduce::max, Reduce::sum}) {
    CacheCore cache(Small, stages_of(KVzip{.budget = 100, .reduce = reduce}), Exact);
    feed_and_probe(cache);
    for (const HeadId id : {HeadId{0, 1}, HeadId{3, 0}}) {
      const Received received = naive(id);
      const std::vector<double>& expected = reduce == Reduce::max ? received.most : received.sum;
      const std::vector<double> got = remembered<KVzip>(cache, id, &KVzip::Slot::attention);
      REQUIRE(got.size() == PromptTokens);
      double worst = 0;
      for (std::size_t slot = 0; slot < PromptTokens; ++slot)
        worst = std::max(worst, std::abs(got[slot] - expected[slot]) / expected[slot]);
      CHECK(worst < 1e-4);
    }
  }
}

TEST_CASE("KVzip hears only of the tokens that a probe asks about") {
  CacheCore cache(Small, stages_of(KVzip{.budget = 100}));
  feed_and_probe(cache, 200);
  const std::vector<double> got = remembered<KVzip>(cache, {1, 0}, &KVzip::Slot::attention);
  CHECK(std::ranges::count(got, 0.0) == 200);
  CHECK(std::ranges::all_of(std::span(got).first(200), [](double x) { return x == 0; }));
}

TEST_CASE("KVzip keeps the best tokens of all heads and layers, and the first ones of each") {
  CacheCore cache(Small, stages_of(KVzip{.budget = 100}), Exact);
  feed_and_probe(cache);
  std::vector<std::vector<double>> scores;
  for (const HeadId id : heads()) {
    scores.push_back(remembered<KVzip>(cache, id, &KVzip::Slot::attention));
    std::fill_n(scores.back().begin(), 4, HUGE_VAL);
  }
  const auto expected = best_of_all(scores, 800);
  CHECK(expected[0].size() != expected[1].size());
  cache.compress();
  for (std::size_t head = 0; head < 8; ++head) CHECK(cache.positions(heads()[head]) == expected[head]);
}

TEST_CASE("Members have slots of their own, which hold what the policies hold alone") {
  CacheCore fused(Small, stages_of(RankFusion{.policies = {Observed, KVzip{}}, .budget = 100}));
  CacheCore observed(Small, stages_of(Observed)), zipped(Small, stages_of(KVzip{}));
  for (CacheCore* cache : {&fused, &observed, &zipped}) feed_and_probe(*cache);
  for (const HeadId id : heads()) {
    CHECK(remembered<H2O>(fused, id, &H2O::Slot::mass) == remembered<H2O>(observed, id, &H2O::Slot::mass));
    CHECK(remembered<KVzip>(fused, id, &KVzip::Slot::attention) ==
          remembered<KVzip>(zipped, id, &KVzip::Slot::attention));
  }
}

TEST_CASE("RankFusion keeps the tokens with the best rank by any of its members, two of one type among them") {
  const KVzip sums{.reduce = Reduce::sum};
  CacheCore cache(Small, stages_of(RankFusion{.policies = {Observed, KVzip{}, sums}, .budget = 100}));
  feed_and_probe(cache);
  std::vector<std::vector<double>> best(8, std::vector<double>(PromptTokens));
  for (const auto& [policy, most] : {std::pair{0, false}, {1, true}, {2, false}}) {
    CacheCore alone(Small, policy == 0 ? stages_of(Observed) : stages_of(most ? KVzip{} : sums));
    feed_and_probe(alone);
    std::vector<std::pair<double, std::size_t>> order;
    for (std::size_t head = 0; head < 8; ++head)
      for (std::size_t slot = 0; slot < PromptTokens; ++slot) {
        const float score = policy == 0 ? alone.slots<H2O>(heads()[head])[slot].mass / float(PromptTokens - slot)
                                        : alone.slots<KVzip>(heads()[head])[slot].attention;
        order.emplace_back(policy != 0 && slot < 4 ? HUGE_VAL : double(score), head * PromptTokens + slot);
      }
    std::ranges::sort(order);
    for (std::size_t rank = 0; rank < order.size(); ++rank) {
      double& known = best[order[rank].second / PromptTokens][order[rank].second % PromptTokens];
      known = order[rank].first == HUGE_VAL ? HUGE_VAL : std::max(known, double(rank + 1));
    }
  }
  cache.compress();
  const auto expected = best_of_all(best, 800);
  for (std::size_t head = 0; head < 8; ++head) CHECK(cache.positions(heads()[head]) == expected[head]);
}

TEST_CASE("RankFusion's members can be chosen by name") {
  AnyPolicy::add<RankFusion>();
  AnyPolicy::add<KVzip>();
  const AnyPolicy named =
      AnyPolicy::parse("rank_fusion:policies=(h2o:recent=0,normalize,when=prompt_end)+kvzip,budget=100");
  CacheCore by_name(Small, named.stages()),
      typed(Small, stages_of(RankFusion{.policies = {Observed, KVzip{}}, .budget = 100}));
  feed_prompt(by_name);
  feed_prompt(typed);
  CHECK(holdings(by_name) == holdings(typed));
}
