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

namespace {

/// For each row, its channels' deviation in the range of `after`, as a softmax over the rows.
std::vector<double> lag_shares(const std::vector<std::span<const float>>& rows,
                               const std::vector<std::span<const float>>& after) {
  std::vector<double> shares;
  for (const auto row : rows) {
    std::vector<double> scaled;
    for (std::size_t c = 0; c < row.size(); ++c) {
      double least = HUGE_VAL, most = -HUGE_VAL;
      for (const auto other : after) {
        least = std::min(least, double(other[c]));
        most = std::max(most, double(other[c]));
      }
      scaled.push_back((double(row[c]) - least) / (most - least));
    }
    double mean = 0, squares = 0;
    for (const double x : scaled) mean += x / double(scaled.size());
    for (const double x : scaled) squares += (x - mean) * (x - mean) / double(scaled.size() - 1);
    shares.push_back(std::exp(std::sqrt(squares)));
  }
  double sum = 0;
  for (const double share : shares) sum += share;
  for (double& share : shares) share /= sum;
  return shares;
}

/// LagKV's scores; the tail lies above all others.
std::vector<double> lag_scores(HeadId id, std::size_t lag, bool cross) {
  std::vector<double> scores(PromptTokens, HUGE_VAL);
  for (std::size_t begin = 4; begin + 2 * lag <= PromptTokens; begin += lag) {
    std::vector<double> both(lag);
    for (const bool values : {false, true}) {
      std::vector<std::span<const float>> rows;
      for (std::size_t t = begin; t < begin + 2 * lag; ++t)
        rows.push_back(values ? value_at(id.layer, id.head, Position(t)) : key_at(id.layer, id.head, Position(t)));
      const auto middle = rows.begin() + std::ptrdiff_t(lag);
      const std::vector<double> shares = lag_shares({rows.begin(), middle}, {middle, rows.end()});
      for (std::size_t i = 0; i < lag; ++i) both[i] += shares[i] / 2;
    }
    for (std::size_t i = 0; i < lag; ++i)
      scores[begin + i] =
          cross ? both[i] : double(std::ranges::count_if(both, [&](double x) { return x < both[i]; })) / double(lag);
  }
  return scores;
}

}  // namespace

TEST_CASE("LagKV keeps what varies most in the range of the tokens after it, by ranks or by the scores themselves") {
  for (const bool cross : {false, true}) {
    CacheCore cache(Small, stages_of(LagKV{.budget = 100, .lag = 32, .cross_scoring = cross}), Exact);
    feed_prompt(cache);
    for (const HeadId id : heads()) CHECK(cache.positions(id) == best_positions(lag_scores(id, 32, cross), 100));
  }
}

TEST_CASE("LagKV keeps the first tokens and the newest where nothing is after them, or the budget is too small") {
  std::vector<Position> expected{0, 1, 2, 3};
  for (Position at = 264; at < 300; ++at) expected.push_back(at);
  for (const std::size_t lag : {32u, 128u, 149u}) {
    CacheCore cache(Small, stages_of(LagKV{.budget = 40, .lag = lag}));
    feed_prompt(cache);
    CHECK(cache.positions({2, 1}) == expected);
  }
}

TEST_CASE(
    "ChunkKV keeps the chunks that the heads of the layer score highest, the last one as far as the budget goes") {
  CacheCore cache(Small, stages_of(ChunkKV{.base = Knorm{}, .budget = 100, .chunk = 16}), Exact);
  feed_prompt(cache);
  for (const HeadId id : heads()) {
    std::vector<double> scores(PromptTokens);
    for (std::size_t begin = 0; begin < PromptTokens; begin += 16) {
      const std::size_t end = std::min(PromptTokens, begin + 16);
      double mean = 0;
      for (std::size_t slot = begin; slot < end; ++slot)
        for (std::size_t head = 0; head < Small.kv_heads; ++head)
          mean -= length(key_at(id.layer, head, Position(slot))) / double(end - begin);
      for (std::size_t slot = begin; slot < end; ++slot) scores[slot] = mean;
    }
    CHECK(cache.positions(id) == best_positions(scores, 100));
  }
}

TEST_CASE("ChunkKV keeps what its base protects, and then the rest of the chunk that it is in") {
  CacheCore cache(Small, stages_of(ChunkKV{.base = SnapKV{.window = 30}, .budget = 60, .chunk = 20}));
  feed_prompt(cache);
  for (const HeadId id : heads()) {
    const std::vector<Position> kept = cache.positions(id);
    REQUIRE(kept.size() == 60);
    CHECK(kept[20] == 260);  // the window begins at 270, inside of a chunk
    CHECK(kept[19] == kept[0] + 19);
  }
}

TEST_CASE("ChunkKV refuses bases that do not score heads or layers") {
  const auto make = [](auto policy) { return support::error_text([&] { CacheCore(Small, stages_of(policy)); }); };
  CHECK(make(ChunkKV{.base = StreamingLLM{}}).find("must be a policy that scores") != std::string::npos);
  CHECK(make(ChunkKV{.base = RankFusion{{Knorm{}}}}).find("must be a policy that scores") != std::string::npos);
}

TEST_CASE("CriticalKV takes half by the scores of its base and half by those times the length of what a value adds") {
  // A projection that looks at every other channel, differently in each head; nothing is given in the second round.
  const ValueNorms norms{[](HeadId id, ConstRows values, std::span<float> out) {
    for (std::size_t slot = 0; slot < out.size(); ++slot) {
      out[slot] = 0;
      for (std::size_t c = id.head; c < values.dim; c += 2) out[slot] += std::abs(values[slot][c]);
    }
  }};
  for (const bool given : {true, false}) {
    CriticalKV policy{.base = Knorm{}, .budget = 100, .epsilon = 12};
    if (given) policy.norms = norms;
    CacheCore cache(Small, stages_of(policy), Exact);
    feed_prompt(cache);
    for (const HeadId id : heads()) {
      std::vector<double> scores(PromptTokens);
      for (std::size_t slot = 0; slot < PromptTokens; ++slot)
        scores[slot] = -length(key_at(id.layer, id.head, Position(slot)));
      const std::vector<Position> first = best_positions(scores, 50);
      for (std::size_t slot = 0; slot < PromptTokens; ++slot) {
        double added = 0;
        const auto value = value_at(id.layer, id.head, Position(slot));
        for (std::size_t c = given ? id.head : 0; c < value.size(); c += given ? 2 : 1)
          added += std::abs(double(value[c]));
        scores[slot] = (scores[slot] + 12) * added;
      }
      for (const Position slot : first) scores[std::size_t(slot)] = HUGE_VAL;
      CHECK(cache.positions(id) == best_positions(scores, 100));
    }
  }
}

namespace {

/// R-KV's scores of the tokens at `positions`, of which the last `window` are protected, as they are defined.
std::vector<double> redundant_scores(HeadId id, const std::vector<Position>& positions, const RKV& policy) {
  const std::size_t slots = positions.size(), older = slots - policy.window;
  std::vector<double> importance(older), scores(slots, HUGE_VAL), means(slots);
  for (std::size_t w = older; w < slots; ++w) {
    std::vector<double> weights(older, -HUGE_VAL);
    double sum = 0;
    for (std::size_t slot = 0; slot < older; ++slot) {
      const auto key = key_at(id.layer, id.head, positions[slot]);
      const auto all = text().tokens(id.layer, std::size_t(positions[w]), 1).q[0];
      for (std::size_t g = 0; g < Small.group(); ++g)
        weights[slot] = std::max(
            weights[slot],
            dot(key,
                std::vector<double>(all.begin() + std::ptrdiff_t((id.head * Small.group() + g) * Small.head_dim),
                                    all.begin() + std::ptrdiff_t((id.head * Small.group() + g + 1) * Small.head_dim))));
      sum += weights[slot] = std::exp(weights[slot] * double(Small.logit_scale()));
    }
    for (std::size_t slot = 0; slot < older; ++slot) importance[slot] += weights[slot] / sum / double(policy.window);
  }
  double total = 0;
  for (std::size_t i = 0; i < slots; ++i) {
    std::vector<double> cosines(slots);
    const auto own = key_at(id.layer, id.head, positions[i]);
    std::size_t repeated = slots;
    for (std::size_t j = 0; j < slots; ++j) {
      if (j == i) continue;
      const auto other = key_at(id.layer, id.head, positions[j]);
      cosines[j] = dot(own, std::vector<double>(other.begin(), other.end())) / length(own) / length(other);
      if (cosines[j] > policy.similar) repeated = j;
    }
    if (repeated < slots) cosines[repeated] = 0;
    for (std::size_t j = 0; j < slots; ++j) means[j] += cosines[j] / double(slots);
  }
  for (const double mean : means) total += std::exp(mean);
  for (std::size_t slot = 0; slot < older; ++slot) {
    double most = 0;
    for (std::size_t near = slot < 3 ? 0 : slot - 3; near < std::min(older, slot + 4); ++near)
      most = std::max(most, importance[near]);
    scores[slot] = policy.lambda * most - (1 - policy.lambda) * std::exp(means[slot]) / total;
  }
  return scores;
}

/// Those of `positions` with the best scores.
std::vector<Position> best_of(const std::vector<Position>& positions, const std::vector<double>& scores,
                              std::size_t count) {
  std::vector<Position> kept;
  for (const Position slot : best_positions(scores, count)) kept.push_back(positions[std::size_t(slot)]);
  return kept;
}

}  // namespace

TEST_CASE("R-KV keeps what the newest queries need and no key repeats, after a prompt and then at intervals") {
  // Keys of random tokens have cosines of 0.5 now and then.
  const RKV policy{.budget = 100, .interval = 12, .lambda = 0.3, .similar = 0.4};
  CacheCore cache(Small, stages_of(policy), Exact);
  feed_prompt(cache);
  std::vector<Position> all;
  for (std::size_t t = 0; t < PromptTokens; ++t) all.push_back(Position(t));
  std::vector<std::vector<Position>> kept;
  for (const HeadId id : heads()) {
    kept.push_back(best_of(all, redundant_scores(id, all, policy), 100));
    CHECK(cache.positions(id) == kept.back());
  }
  for (std::size_t t = PromptTokens; t < PromptTokens + DecodedTokens; ++t) {
    decode(cache, t, 1);
    for (std::size_t head = 0; head < 8; ++head) {
      kept[head].push_back(Position(t));
      if (kept[head].size() == 112)
        kept[head] = best_of(kept[head], redundant_scores(heads()[head], kept[head], policy), 100);
      CHECK(cache.positions(heads()[head]) == kept[head]);
    }
  }
  CHECK(kept[0].size() == 108);
}

TEST_CASE("R-KV lets the older of two equal tokens go before others") {
  support::FakeHead<RKV> fake(RKV{.budget = 30, .interval = 1, .window = 4, .lambda = 0});
  fake.append(31);
  fake.stored_keys[20] = fake.stored_keys[7];
  for (std::size_t c = 0; c < fake.stored_keys[7].size(); ++c) {
    fake.stored_keys[7][c] *= 3;
    fake.stored_keys[20][c] *= 2;
  }
  const Plan plan = fake.plan(Event::prompt_end);
  CHECK(plan.kept_count() == 30);
  CHECK(plan.kept(20));
}
