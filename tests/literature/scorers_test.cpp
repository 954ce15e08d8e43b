// Policies that score, each against the definition of its scores in double precision.
#include "catch_shim.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/all.hpp"
#include "literature/trial.hpp"
#include "support/fake_head.hpp"

using namespace literature;

namespace {

constexpr CacheOptions Exact{.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact};

double dot(std::span<const float> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += double(a[c]) * b[c];
  return sum;
}
double length(std::span<const float> row) {
  return std::sqrt(dot(row, std::vector<double>(row.begin(), row.end())));
}

/// Attention of the token at `from`, summed over all query heads of the layer.
std::vector<double> layer_attention(std::size_t layer, std::size_t from) {
  std::vector<double> sum(from + 1);
  for (std::size_t query = 0; query < Small.query_heads; ++query) {
    const std::vector<double> one = attention_from(layer, query, from, from + 1);
    for (std::size_t slot = 0; slot <= from; ++slot) sum[slot] += one[slot];
  }
  return sum;
}

}  // namespace

TEST_CASE("KeyDiff keeps the keys with the lowest cosine with the mean direction") {
  CacheCore cache(Small, stages_of(KeyDiff{.budget = 100}), Exact);
  feed_prompt(cache);
  for (const HeadId id : heads()) {
    std::vector<double> anchor(Small.head_dim), scores;
    for (Position at = 0; at < Position(PromptTokens); ++at) {
      const auto key = key_at(id.layer, id.head, at);
      for (std::size_t c = 0; c < key.size(); ++c) anchor[c] += double(key[c]) / length(key);
    }
    for (Position at = 0; at < Position(PromptTokens); ++at) {
      const auto key = key_at(id.layer, id.head, at);
      scores.push_back(-dot(key, anchor) / length(key));
    }
    CHECK(cache.positions(id) == best_positions(scores, 100));
  }
}

TEST_CASE(
    "TOVA keeps, in all heads of a layer, what the layer's last query attends to on average, and that query's token") {
  CacheCore cache(Small, stages_of(TOVA{.budget = 100}), Exact);
  feed_prompt(cache);
  for (const HeadId id : heads()) {
    std::vector<double> scores = layer_attention(id.layer, PromptTokens - 1);
    scores.back() = HUGE_VAL;
    CHECK(cache.positions(id) == best_positions(scores, 100));
  }
}

TEST_CASE("TOVA lets one token go in all heads of a layer at every generated token, the least attended to by it") {
  CacheCore cache(Small, stages_of(TOVA{.budget = 100}), Exact);
  feed_prompt(cache);
  for (std::size_t t = PromptTokens; t < PromptTokens + DecodedTokens; ++t) {
    std::vector<std::vector<Position>> before;
    for (std::uint32_t layer = 0; layer < Small.layers; ++layer) before.push_back(cache.positions({layer, 0}));
    decode(cache, t, 1);
    for (std::uint32_t layer = 0; layer < Small.layers; ++layer) {
      before[layer].push_back(Position(t));
      // A head's weights are relative to the slots that it holds.
      std::vector<double> sum(before[layer].size());
      for (std::size_t query = 0; query < Small.query_heads; ++query) {
        const std::vector<double> all = attention_from(layer, query, t, t + 1);
        double held = 0;
        for (const Position at : before[layer]) held += all[std::size_t(at)];
        for (std::size_t slot = 0; slot < sum.size(); ++slot) sum[slot] += all[std::size_t(before[layer][slot])] / held;
      }
      before[layer].erase(before[layer].begin() + (std::ranges::min_element(sum) - sum.begin()));
      CHECK(cache.positions({layer, 0}) == before[layer]);
      CHECK(cache.positions({layer, 1}) == before[layer]);
    }
  }
}

TEST_CASE("TOVA is refused behind a policy that leaves the heads of a layer different tokens") {
  const auto make = [](auto policy) { return support::error_text([&] { CacheCore(Small, stages_of(policy)); }); };
  CHECK(make(StreamingLLM{.budget = 150} | TOVA{.budget = 100}) == "none");
  CHECK(make(SnapKV{.budget = 150} | TOVA{.budget = 100}).find("different positions") != std::string::npos);
}

namespace {

/// Scores of ExpectedAttention as they are defined: the exact averaged rotation as a matrix, all in double.
std::vector<double> expected_scores(HeadId id, const ExpectedAttention& policy) {
  const std::size_t dim = Small.head_dim, pairs = dim / 2;
  std::vector<double> scores(PromptTokens);
  std::vector<double> rotation(dim * dim);
  for (std::size_t m = 0; m < policy.future; ++m)
    for (std::size_t i = 0; i < pairs; ++i) {
      const double angle = double(PromptTokens + m) * double(Small.rotary.inv_freq[i]),
                   share = 1 / double(policy.future);
      rotation[i * dim + i] += std::cos(angle) * share;
      rotation[(i + pairs) * dim + i + pairs] += std::cos(angle) * share;
      rotation[i * dim + i + pairs] -= std::sin(angle) * share;
      rotation[(i + pairs) * dim + i] += std::sin(angle) * share;
    }
  for (std::size_t g = 0; g < Small.group(); ++g) {
    std::vector<std::vector<double>> turned;  // queries without their rotation, turned by the average one
    std::vector<double> mean(dim);
    for (std::size_t t = policy.sinks; t < PromptTokens; ++t) {
      const auto query = text().tokens(id.layer, t, 1).q[0].subspan((id.head * Small.group() + g) * dim, dim);
      std::vector<double> plain(dim), row(dim);
      for (std::size_t i = 0; i < pairs; ++i) {
        const double angle = -double(t) * double(Small.rotary.inv_freq[i]), a = query[i], b = query[i + pairs];
        plain[i] = a * std::cos(angle) - b * std::sin(angle);
        plain[i + pairs] = a * std::sin(angle) + b * std::cos(angle);
      }
      for (std::size_t a = 0; a < dim; ++a)
        for (std::size_t b = 0; b < dim; ++b) row[a] += rotation[a * dim + b] * plain[b];
      for (std::size_t a = 0; a < dim; ++a) mean[a] += row[a] / double(PromptTokens - policy.sinks);
      turned.push_back(row);
    }
    std::vector<double> weights(PromptTokens);
    double sum = 0;
    for (std::size_t slot = policy.sinks; slot < PromptTokens; ++slot) {
      const auto key = key_at(id.layer, id.head, Position(slot));
      const double middle = dot(key, mean);
      double spread = 0;
      for (const auto& row : turned) spread += std::pow(dot(key, row) - middle, 2) / double(turned.size());
      const double scale = double(Small.logit_scale());
      sum += weights[slot] = std::exp(middle * scale + spread * scale * scale / 2);
    }
    for (std::size_t slot = policy.sinks; slot < PromptTokens; ++slot) scores[slot] += weights[slot] / sum;
  }
  for (std::size_t slot = 0; slot < PromptTokens; ++slot)
    scores[slot] = slot < policy.sinks ? HUGE_VAL : scores[slot] * length(value_at(id.layer, id.head, Position(slot)));
  return scores;
}

}  // namespace

TEST_CASE("ExpectedAttention keeps what queries as those of the prompt would attend to at the positions that come") {
  const ExpectedAttention policy{.budget = 100, .future = 64};
  CacheCore cache(Small, stages_of(policy), Exact);
  feed_prompt(cache, {128, 172});
  for (const HeadId id : heads()) CHECK(cache.positions(id) == best_positions(expected_scores(id, policy), 100));
}

TEST_CASE(
    "What ExpectedAttention gathers of a prompt is counted while it is open and gone when it ends, inside AdaKV too") {
  const std::size_t one_head = Small.group() * Small.head_dim * (Small.head_dim + 1) * sizeof(double);
  const auto check = [&](const Stages& stages) {
    CacheCore cache(Small, stages);
    for (std::size_t layer = 0; layer < Small.layers; ++layer)
      cache.prefill(layer, text().tokens(layer, 0, PromptTokens), {}, false);
    CHECK(cache.stats().metadata > 8 * one_head);
    cache.compress();
    CHECK(cache.stats().slots <= 101 * 8);
    CHECK(cache.stats().metadata < one_head);
    decode(cache);
    CHECK(cache.stats().metadata < one_head);
  };
  check(stages_of(ExpectedAttention{.budget = 100}));
  check(stages_of(AdaKV{.base = ExpectedAttention{}, .budget = 100}));
}

TEST_CASE("ExpectedAttention says what is missing where no prompt is open") {
  CacheCore cache(Small, stages_of(ExpectedAttention{.budget = 5}));
  decode(cache);
  CHECK(support::error_text([&] { cache.compress(); }).find("no open prompt") != std::string::npos);
}
