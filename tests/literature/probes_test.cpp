// Policies that learn from a probe, and policies made of others.
#include <map>
#include <set>
#include <tuple>

#include "catch_shim.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/policies/all.hpp"
#include "literature/trial.hpp"
#include "support/fake_head.hpp"

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

/// Asks the policy inside it for its scores, and writes them down: layer, head.
struct Listener {
  Member inside;
  std::shared_ptr<std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<double>>> heard;
  Budget budget = 100;

  std::span<const Member> members() const { return {&inside, 1}; }
  void score_all(Cache<Listener> heads, ScoreSpans scores) const {
    std::vector<AnyHead> same;
    for (const Head<Listener>& head : heads) same.push_back(head.member(0));
    inside.score(same, scores);
    for (std::size_t h = 0; h < heads.size(); ++h)
      (*heard)[{heads[h].id.layer, heads[h].id.head}].assign(scores[h].begin(), scores[h].end());
  }
};

/// What a policy says about the tokens of each head once the prompt from `begin` on has been repeated.
std::vector<std::vector<double>> scores_of(const Member& policy, std::size_t begin = 0) {
  const Listener listener{policy, std::make_shared<decltype(Listener::heard)::element_type>()};
  CacheCore cache(Small, stages_of(listener), Exact);
  feed_and_probe(cache, begin);
  cache.compress();
  std::vector<std::vector<double>> all;
  for (const HeadId id : heads()) all.push_back(listener.heard->at({id.layer, id.head}));
  return all;
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

TEST_CASE(
    "KVzip scores by the most that a query of the repetition attends to a token, or by the sum or mean over all") {
  for (const Reduce reduce : {Reduce::max, Reduce::sum, Reduce::mean}) {
    const auto scores = scores_of(KVzip{.sinks = 0, .reduce = reduce});
    for (const std::size_t head : {1u, 6u}) {
      const Received received = naive(heads()[head]);
      REQUIRE(scores[head].size() == PromptTokens);
      double worst = 0;
      for (std::size_t slot = 0; slot < PromptTokens; ++slot) {
        const double expected = reduce == Reduce::max   ? received.most[slot]
                                : reduce == Reduce::sum ? received.sum[slot]
                                                        : received.sum[slot] / double(PromptTokens);
        worst = std::max(worst, std::abs(scores[head][slot] - expected) / expected);
      }
      CHECK(worst < 1e-4);
    }
  }
}

TEST_CASE("KVzip hears only of the tokens that a probe asks about") {
  const std::vector<double> scores = scores_of(KVzip{.sinks = 0}, 200)[2];
  CHECK(std::ranges::count(scores, 0.0) == 200);
  CHECK(std::ranges::all_of(std::span(scores).first(200), [](double x) { return x == 0; }));
}

TEST_CASE("KVzip adds up what several probes show, each about a part of the prompt, in a later prompt too") {
  CacheCore parts(Small, stages_of(KVzip{.budget = 100}), Exact), whole(Small, stages_of(KVzip{.budget = 100}), Exact);
  const auto ask = [](CacheCore& cache, std::size_t begin, std::size_t end) {
    for (std::size_t layer = 0; layer < Small.layers; ++layer)
      cache.probe(layer, text().tokens(layer, 0, PromptTokens), {}, Position(begin), Position(end));
  };
  for (CacheCore* cache : {&parts, &whole})
    for (std::size_t layer = 0; layer < Small.layers; ++layer)
      cache->prefill(layer, text().tokens(layer, 0, PromptTokens), {}, false);
  ask(parts, 0, 120);
  ask(parts, 120, PromptTokens);
  ask(whole, 0, PromptTokens);
  for (CacheCore* cache : {&parts, &whole}) {
    cache->compress();
    for (std::size_t layer = 0; layer < Small.layers; ++layer)
      cache->prefill(layer, text().tokens(layer, PromptTokens, 40), {}, false);
    ask(*cache, 0, PromptTokens + 40);
    cache->compress();
  }
  CHECK(holdings(parts) == holdings(whole));
  CHECK(whole.stats().slots == 800);
}

TEST_CASE(
    "KVzip keeps the best tokens of all heads and layers, or of a layer, or of a head, and the first ones of each") {
  std::vector<std::vector<double>> scores = scores_of(KVzip{.sinks = 0});
  for (std::vector<double>& head : scores) std::fill_n(head.begin(), 4, HUGE_VAL);
  for (const Scope over : {Scope::cache, Scope::layer, Scope::head}) {
    CacheCore cache(Small, stages_of(KVzip{.budget = 100, .over = over}), Exact);
    feed_and_probe(cache);
    cache.compress();
    std::set<std::size_t> sizes;
    const std::size_t together = over == Scope::cache ? 8 : over == Scope::layer ? 2 : 1;
    for (std::size_t first = 0; first < 8; first += together) {
      const std::vector<std::vector<double>> some(scores.begin() + std::ptrdiff_t(first),
                                                  scores.begin() + std::ptrdiff_t(first + together));
      const auto expected = best_of_all(some, 100 * together);
      for (std::size_t h = 0; h < together; ++h) {
        CHECK(cache.positions(heads()[first + h]) == expected[h]);
        sizes.insert(expected[h].size());
      }
    }
    CHECK((sizes.size() == 1) == (over == Scope::head));
  }
}

TEST_CASE("KVzip without a probe is an error where tokens would have to go, and none where there is room") {
  CacheCore small(Small, stages_of(KVzip{.budget = 100})), roomy(Small, stages_of(KVzip{.budget = PromptTokens}));
  const auto feed = [](CacheCore& cache) {
    for (std::size_t layer = 0; layer < Small.layers; ++layer)
      cache.prefill(layer, text().tokens(layer, 0, PromptTokens), {});
  };
  CHECK(support::error_text([&] { feed(small); }) ==
        "KVzip: nothing is known of the repetition: leave the prompt open, call probe(), then compress()");
  CHECK(support::error_text([&] { feed(roomy); }) == "none");
  CHECK(roomy.stats().slots == PromptTokens * 8);
}

TEST_CASE("What KVzip gathers of a prompt is counted while it is open and gone when it ends, inside RankFusion too") {
  for (const Stages& stages : {stages_of(KVzip{.budget = 100}), stages_of(RankFusion{{KVzip{}}, 100})}) {
    CacheCore cache(Small, stages), plain(Small, stages_of(Knorm{.budget = 100}));
    for (CacheCore* one : {&cache, &plain}) feed_and_probe(*one);
    CHECK(cache.stats().metadata >= plain.stats().metadata + 8 * PromptTokens * sizeof(float));
    for (CacheCore* one : {&cache, &plain}) one->compress();
    CHECK(cache.stats().slots == 800);
    CHECK(cache.stats().metadata < plain.stats().metadata + 8 * PromptTokens * sizeof(float));
  }
}

TEST_CASE("Members see what the policies see alone") {
  const auto fused = scores_of(RankFusion{.policies = {KVzip{.sinks = 0}}, .over = Scope::head});
  const auto alone = scores_of(KVzip{.sinks = 0});
  for (std::size_t head = 0; head < 8; ++head)
    CHECK(best_positions(fused[head], 50) == best_positions(alone[head], 50));
}

TEST_CASE("RankFusion fuses the ranks of its members over heads, layers or the cache, by their maximum or their mean") {
  // Two members are of one type; a rank is the share of tokens that score no better.
  const std::vector<Member> members{Observed, KVzip{.sinks = 0}, KVzip{.sinks = 0, .reduce = Reduce::sum}};
  std::vector<std::vector<std::vector<double>>> theirs;
  for (const Member& member : members) theirs.push_back(scores_of(member));
  for (const auto& [over, together] : {std::pair{Scope::cache, 8u}, {Scope::layer, 2u}, {Scope::head, 1u}})
    for (const Reduce reduce : {Reduce::max, Reduce::mean}) {
      const auto fused = scores_of(RankFusion{members, 100, over, reduce});
      double worst = 0;
      for (std::size_t head = 0; head < 8; ++head)
        for (std::size_t slot = 0; slot < PromptTokens; slot += 7) {
          double most = 0, sum = 0;
          for (const auto& scores : theirs) {
            double beaten = 0;
            for (std::size_t other = head / together * together; other < (head / together + 1) * together; ++other)
              for (const double score : scores[other]) beaten += score <= scores[head][slot];
            const double rank = beaten / double(together * PromptTokens);
            most = std::max(most, rank);
            sum += rank;
          }
          worst = std::max(worst, std::abs(fused[head][slot] - (reduce == Reduce::max ? most : sum / 3)));
        }
      CHECK(worst < 1e-6);
    }
}

TEST_CASE("RankFusion keeps the best ranks of the cache, and what a member protects") {
  const std::vector<Member> members{Observed, KVzip{}};
  const auto scores = scores_of(RankFusion{members});
  CHECK(scores[3][3] == HUGE_VAL);
  const auto expected = best_of_all(scores, 800);
  CacheCore cache(Small, stages_of(RankFusion{members, 100}), Exact);
  feed_and_probe(cache);
  cache.compress();
  for (std::size_t head = 0; head < 8; ++head) CHECK(cache.positions(heads()[head]) == expected[head]);
  CHECK(expected[0].size() != expected[1].size());
}

namespace {

/// Scores NaN, but for every third slot.
struct MostlyNan {
  Budget budget = 10;
  void score(const Head<MostlyNan>& head, std::span<float> scores) const {
    for (std::size_t slot = 0; slot < head.size(); ++slot) scores[slot] = slot % 3 == 0 ? float(slot % 2) : NAN;
  }
};

}  // namespace

TEST_CASE("To RankFusion NaN is the lowest score, and equal scores rank equally") {
  const std::vector<double> ranks = scores_of(RankFusion{{MostlyNan{}}, 100, Scope::head})[0];
  for (std::size_t slot = 0; slot < PromptTokens; ++slot)
    CHECK(ranks[slot] == double(slot % 3 != 0 ? 2.0f / 3 : slot % 2 == 0 ? 250.0f / 300 : 1.0f));
}

TEST_CASE("RankFusion refuses to be without policies, and policies that do not score or that turn positions") {
  const auto complaint = [](const std::vector<Member>& policies) {
    return support::error_text([&] { CacheCore(Small, stages_of(RankFusion{policies})); });
  };
  CHECK(complaint({}) == "RankFusion: it needs policies that rank");
  CHECK(
      complaint({Knorm{}, StreamingLLM{}}) ==
      "RankFusion: each of its policies must be a policy that scores the slots of a head, of a layer or of all layers");
  CHECK(complaint({H2O{.positions = Positions::in_cache}}) ==
        "RankFusion: each of its policies must use original positions");
  CHECK(complaint({SnapKV{.window = 2000}}) == "SnapKV: window + 1 (2001) must not exceed the budget (1024)");
}

TEST_CASE("RankFusion's members can be chosen by name; by default they are KVzip and normalized H2O") {
  const AnyPolicy named =
      AnyPolicy::parse("rank_fusion:policies=(h2o:recent=0,normalize,when=prompt_end)+kvzip,budget=100");
  CacheCore by_name(Small, named.stages()), by_default(Small, AnyPolicy::parse("rank_fusion:budget=100").stages()),
      typed(Small, stages_of(RankFusion{.policies = {Observed, KVzip{}}, .budget = 100}));
  for (CacheCore* cache : {&by_name, &by_default, &typed}) feed_prompt(*cache);
  CHECK(holdings(by_name) == holdings(typed));
  CHECK(holdings(by_default) == holdings(typed));
}
