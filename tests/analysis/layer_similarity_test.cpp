#include "kvc/analysis/layer_similarity.hpp"

#include <bit>
#include <cmath>
#include <random>
#include <string>

#include "catch_shim.hpp"
#include "kvc/kvc.hpp"
#include "support/random_tokens.hpp"

using kvc::choose_pairs;
using kvc::LayerPair;
using kvc::LayerSimilarity;

namespace {

const kvc::CacheShape Shape{.layers = 3, .query_heads = 4, .kv_heads = 2, .head_dim = 16};
const kvc::CacheOptions Exact{.dense = {kvc::Scalar::f32}, .arithmetic = kvc::Arithmetic::exact};
constexpr std::size_t Tokens = 50, Width = 32;

/// Feeds keys and values of every layer, [tokens, kv_heads * head_dim].
void feed(kvc::CacheCore& cache, const std::vector<std::vector<float>>& k, const std::vector<std::vector<float>>& v) {
  const std::vector<float> queries(Tokens * Shape.query_heads * Shape.head_dim, 0.1f);
  for (std::size_t layer = 0; layer < Shape.layers; ++layer)
    cache.prefill(layer,
                  {.q = {queries.data(), Tokens, Shape.query_heads * Shape.head_dim},
                   .k = {k[layer].data(), Tokens, Width},
                   .v = {v[layer].data(), Tokens, Width}},
                  {});
}
std::vector<std::vector<float>> random_layers(unsigned seed) {
  support::Dice dice(seed);
  return {dice.row(Tokens * Width), dice.row(Tokens * Width), dice.row(Tokens * Width)};
}
std::vector<LayerSimilarity> report_with(const std::vector<double>& errors) {
  std::vector<LayerSimilarity> report;
  for (std::size_t i = 0; i < errors.size(); ++i) {
    report.push_back({{i, i + 1}, {}, {}});
    report.back().all.keys.error = errors[i];
  }
  return report;
}

}  // namespace

TEST_CASE("Layers that are the same up to a factor have cosine 1, and merging changes nothing") {
  std::vector<std::vector<float>> k = random_layers(1), v = random_layers(2);
  k[1] = k[0];
  for (float& x : k[1]) x *= 3;
  v[1] = v[0];
  kvc::KVCache cache(Shape, kvc::Full{}, Exact);
  feed(cache, k, v);
  const std::vector<LayerSimilarity> report = kvc::layer_similarity(cache);
  REQUIRE(report.size() == 2);
  for (const auto& rows : {report[0].all.keys, report[0].all.values, report[0].heads[1].keys}) {
    CHECK(rows.mean_cosine == Approx(1));
    CHECK(rows.low_cosine == Approx(1));
    CHECK(rows.mean_distance < 1e-3);
    CHECK(rows.error < 1e-3);
  }
  CHECK(report[1].pair == LayerPair{1, 2});
  CHECK(std::abs(report[1].all.keys.mean_cosine) < 0.1);
  CHECK(report[1].all.keys.mean_distance == Approx(0.5).margin(0.03));
}

TEST_CASE("Mean, median and 5 % quantile are those of the tokens' cosines, keys and values apart, head by head") {
  std::vector<std::vector<float>> k(3, std::vector<float>(Tokens * Width)), v = k;
  // Head 0: token t has cosine t / 49 of keys; head 1: all 0.5. Values are opposite.
  for (std::size_t t = 0; t < Tokens; ++t)
    for (std::size_t head = 0; head < 2; ++head) {
      const double cosine = head == 0 ? double(t) / (Tokens - 1) : 0.5;
      const std::size_t at = t * Width + head * Shape.head_dim;
      k[0][at] = 2;
      k[1][at] = float(cosine);
      k[1][at + 1] = float(std::sqrt(1 - cosine * cosine));
      v[0][at] = 1;
      v[1][at] = -5;
    }
  k[2] = k[1];
  v[2] = v[1];
  kvc::KVCache cache(Shape, kvc::Full{}, Exact);
  feed(cache, k, v);
  const LayerSimilarity pair = kvc::layer_similarity(cache)[0];
  CHECK(pair.heads[0].keys.mean_cosine == Approx(0.5));
  CHECK(pair.heads[0].keys.median_cosine == Approx(0.5));
  CHECK(pair.heads[0].keys.low_cosine == Approx(0.05));
  CHECK(pair.heads[1].keys.low_cosine == Approx(0.5));
  CHECK(pair.heads[1].keys.mean_distance == Approx(1.0 / 3));
  CHECK(pair.all.keys.mean_cosine == Approx(0.5));
  CHECK(pair.all.values.mean_cosine == Approx(-1));
  CHECK(pair.all.values.mean_distance == Approx(1));
}

TEST_CASE("The error is what MiniCache does to the rows") {
  const std::vector<std::vector<float>> k = random_layers(3), v = random_layers(4);
  kvc::KVCache full(Shape, kvc::Full{}, Exact);
  feed(full, k, v);
  for (const double t : {0.0, 0.6, 0.9}) {
    const LayerSimilarity pair = kvc::layer_similarity(full, t)[0];
    kvc::KVCache merged(Shape, kvc::MiniCache{.t = t, .start = 0, .retention = kvc::Retention::none}, Exact);
    feed(merged, k, v);
    for (std::uint32_t head = 0; head < 2; ++head) {
      double keys = 0, values = 0, all_keys = 0, all_values = 0;
      for (std::uint32_t layer = 0; layer < 2; ++layer) {
        const kvc::EigenHead before = kvc::gather(full, {layer, head}), after = kvc::gather(merged, {layer, head});
        keys += double((before.keys - after.keys).squaredNorm());
        values += double((before.values - after.values).squaredNorm());
        all_keys += double(before.keys.squaredNorm());
        all_values += double(before.values.squaredNorm());
      }
      CHECK(pair.heads[head].keys.error == Approx(std::sqrt(keys / all_keys)).epsilon(1e-4));
      CHECK(pair.heads[head].values.error == Approx(std::sqrt(values / all_values)).epsilon(1e-4));
    }
    CHECK(pair.error() == std::max(pair.all.keys.error, pair.all.values.error));
  }
}

TEST_CASE("A report of rows of zeros is finite, and one of a model of one layer is empty") {
  const std::vector<std::vector<float>> zeros(3, std::vector<float>(Tokens * Width));
  kvc::KVCache cache(Shape, kvc::Full{}, Exact);
  feed(cache, zeros, zeros);
  const kvc::RowSimilarity rows = kvc::layer_similarity(cache)[0].all.keys;
  CHECK((rows.mean_cosine == 0 && rows.error == 0));
  kvc::KVCache single({.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 16}, kvc::Full{});
  CHECK(kvc::layer_similarity(single).empty());
}

TEST_CASE("Layers that hold different tokens cannot be compared, and the message says where") {
  kvc::KVCache cache(Shape, kvc::Knorm{.budget = 10}, Exact);
  feed(cache, random_layers(5), random_layers(6));
  std::string message;
  try {
    kvc::layer_similarity(cache);
  } catch (const kvc::Error& error) {
    message = error.what();
    CHECK(error.code() == kvc::ErrorCode::incompatible);
  }
  CHECK(message == "layer_similarity: head 0 holds different tokens in layers 0 and 1");
}

TEST_CASE("Pairs are chosen below an error, as many as fit side by side") {
  const auto report = report_with({0.1, 0.05, 0.1, 0.9, 0.2});
  CHECK(choose_pairs(report, 0.15) == std::vector<LayerPair>{{0, 1}, {2, 3}});
  CHECK(choose_pairs(report, 0.3) == std::vector<LayerPair>{{0, 1}, {2, 3}, {4, 5}});
  CHECK(choose_pairs(report, 0.15, 1) == std::vector<LayerPair>{{1, 2}});
  CHECK(choose_pairs(report, 0.15, 0).empty());
  CHECK(choose_pairs(report, 0.01).empty());
  CHECK(choose_pairs({}, 1).empty());
}

TEST_CASE("The chosen pairs have the smallest sum of errors of all sets of that size") {
  std::mt19937 generator(7);
  std::uniform_real_distribution<double> uniform(0.1, 0.9);
  for (int round = 0; round < 50; ++round) {
    std::vector<double> errors(9);
    for (double& error : errors) error = uniform(generator);
    for (std::size_t wanted = 1; wanted <= 5; ++wanted) {
      double best = 1e9;
      for (unsigned set = 0; set < 512; ++set) {
        double sum = 0;
        for (std::size_t i = 0; i < errors.size(); ++i)
          if (set >> i & 1) sum += errors[i];
        if ((set & (set << 1)) == 0 && std::size_t(std::popcount(set)) == wanted) best = std::min(best, sum);
      }
      const std::vector<LayerPair> pairs = choose_pairs(report_with(errors), 1, wanted);
      double sum = 0;
      for (const LayerPair& pair : pairs) sum += errors[pair.below];
      CHECK(pairs.size() == wanted);
      CHECK(sum == Approx(best));
      for (std::size_t i = 1; i < pairs.size(); ++i) CHECK(pairs[i].below > pairs[i - 1].above);
    }
  }
}
