#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/kvc.hpp"
#include "kvc/storage/row_store.hpp"

// The verb `merge`: two layers share directions and keep norms of their own.
namespace {

using kvc::Head, kvc::HeadId, kvc::PairPlan, kvc::Rows;

constexpr std::size_t Dim = 32, KvHeads = 2, Group = 3, Width = KvHeads * Dim;
const kvc::CacheShape Shape{.layers = 4, .query_heads = KvHeads * Group, .kv_heads = KvHeads, .head_dim = Dim};

std::vector<float> normal(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator);
  return values;
}
float norm_of(std::span<const float> x) {
  double squares = 0;
  for (const float value : x) squares += double(value) * double(value);
  return static_cast<float>(std::sqrt(squares));
}
/// The unit vector half way between two directions.
std::vector<float> middle(std::span<const float> a, std::span<const float> b) {
  std::vector<float> direction(a.size());
  for (std::size_t c = 0; c < a.size(); ++c) direction[c] = a[c] / norm_of(a) + b[c] / norm_of(b);
  const float length = norm_of(direction);
  for (float& x : direction) x /= length;
  return direction;
}
bool retained(kvc::Position position, bool key) {
  return position % (key ? 10 : 7) == 0;
}

/// Merges layers 0 and 1, 2 and 3; tokens at some positions stay as they are, others for keys than for values.
struct HalfWay {
  bool retains = true;
  bool pairs(std::size_t layer, const kvc::CacheShape&) const { return layer % 2 == 1; }
  void merge(const Head<HalfWay>& below, const Head<HalfWay>& here, PairPlan& plan) const {
    for (std::size_t slot = plan.first(); slot < here.size(); ++slot) {
      const auto k_below = below.keys()[slot], k_here = here.keys()[slot];
      const auto v_below = below.values()[slot], v_here = here.values()[slot];
      if (!retains || !retained(here.positions[slot], true))
        plan.share_key(slot, middle(k_below, k_here), norm_of(k_below), norm_of(k_here));
      if (!retains || !retained(here.positions[slot], false))
        plan.share_value(slot, middle(v_below, v_here), norm_of(v_below), norm_of(v_here));
    }
  }
};

/// Random rows of all layers, and what HalfWay leaves of them.
struct Context {
  std::size_t tokens;
  std::vector<std::vector<float>> k, v, merged_k, merged_v;
  std::vector<float> q;

  explicit Context(std::size_t count) : tokens(count), q(normal(count * Shape.query_heads * Dim, 99)) {
    for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
      k.push_back(normal(count * Width, unsigned(layer)));
      v.push_back(normal(count * Width, unsigned(50 + layer)));
    }
    merged_k = k;
    merged_v = v;
    for (std::size_t layer = 1; layer < Shape.layers; layer += 2)
      for (std::size_t t = 0; t < count; ++t)
        for (std::size_t head = 0; head < KvHeads; ++head) {
          if (!retained(kvc::Position(t), true)) merge(merged_k, layer, t * Width + head * Dim);
          if (!retained(kvc::Position(t), false)) merge(merged_v, layer, t * Width + head * Dim);
        }
  }
  static void merge(std::vector<std::vector<float>>& x, std::size_t layer, std::size_t at) {
    const std::span<float> below(&x[layer - 1][at], Dim), here(&x[layer][at], Dim);
    const std::vector<float> direction = middle(below, here);
    const float norm_below = norm_of(below), norm_here = norm_of(here);
    for (std::size_t c = 0; c < Dim; ++c) {
      below[c] = direction[c] * norm_below;
      here[c] = direction[c] * norm_here;
    }
  }

  void prefill(kvc::CacheCore& cache, std::size_t count, bool merged = false) const {
    for (std::size_t layer = 0; layer < Shape.layers; ++layer) cache.prefill(layer, rows(layer, 0, count, merged), {});
  }
  void decode(kvc::CacheCore& cache, std::size_t from, std::size_t to) const {
    std::vector<float> out(Shape.query_heads * Dim);
    for (std::size_t t = from; t < to; ++t)
      for (std::size_t layer = 0; layer < Shape.layers; ++layer)
        cache.decode(layer, rows(layer, t, 1, false), {out.data(), 1, out.size()});
  }
  kvc::Tokens rows(std::size_t layer, std::size_t from, std::size_t count, bool merged) const {
    const auto &keys = merged ? merged_k[layer] : k[layer], &values = merged ? merged_v[layer] : v[layer];
    return {.q = {q.data() + from * Shape.query_heads * Dim, count, Shape.query_heads * Dim},
            .k = {keys.data() + from * Width, count, Width},
            .v = {values.data() + from * Width, count, Width}};
  }
};

std::vector<float> attention(const kvc::CacheCore& cache, std::size_t layer) {
  const std::vector<float> query = normal(Shape.query_heads * Dim, 7);
  std::vector<float> out(query.size());
  cache.attend(layer, {query.data(), 1, query.size()}, {out.data(), 1, out.size()});
  return out;
}
double difference(const kvc::CacheCore& a, const kvc::CacheCore& b) {
  double worst = 0;
  for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
    const auto x = attention(a, layer), y = attention(b, layer);
    for (std::size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::fabs(double(x[i]) - double(y[i])));
  }
  return worst;
}

const kvc::CacheOptions Exact{.dense = {kvc::Scalar::f32}, .arithmetic = kvc::Arithmetic::exact};

}  // namespace

TEST_CASE("Merged layers attend as if each held its norms times the shared directions, and retained tokens") {
  const Context context(333);
  kvc::KVCache merged(Shape, HalfWay{}, Exact);
  kvc::KVCache expected(Shape, kvc::Full{}, Exact);
  context.prefill(merged, 333);
  context.prefill(expected, 333, true);
  CHECK(difference(merged, expected) < 2e-6);
}

TEST_CASE("Merging frees the bytes of one layer in two") {
  const Context context(512);
  kvc::KVCache merged(Shape, HalfWay{.retains = false}, Exact);
  kvc::KVCache full(Shape, kvc::Full{}, Exact);
  context.prefill(merged, 512);
  context.prefill(full, 512);
  const std::size_t norms = Shape.heads() * 512 * 2 * sizeof(float);
  CHECK(merged.stats().payload == full.stats().payload / 2);
  CHECK(merged.stats().bytes() < full.stats().bytes() / 2 + norms + 8192);
}

TEST_CASE("Tokens that are decoded later merge too, block by block") {
  const Context context(300);
  kvc::KVCache merged(Shape, HalfWay{}, Exact);
  kvc::KVCache expected(Shape, kvc::Full{}, Exact);
  context.prefill(merged, 100);
  context.decode(merged, 100, 100 + 2 * 64);
  context.prefill(expected, 228, true);
  CHECK(difference(merged, expected) < 2e-6);
  context.decode(merged, 228, 229);  // the next block has begun: its tokens are as they came
  kvc::KVCache full(Shape, kvc::Full{}, Exact);
  context.prefill(full, 300);
  std::vector<float> key(229 * Dim), value(229 * Dim);
  merged.gather({1, 0}, {key.data(), 229, Dim}, {value.data(), 229, Dim});
  CHECK(std::equal(key.end() - Dim, key.end(), context.k[1].begin() + 228 * Width));
}

TEST_CASE("Shared directions are encoded by the quantizer of the pipeline") {
  const Context context(256);
  kvc::KVCache merged(Shape, HalfWay{.retains = false} | kvc::KIVI{.bits = 8}, Exact);
  kvc::KVCache dense(Shape, HalfWay{.retains = false}, Exact);
  context.prefill(merged, 256);
  context.prefill(dense, 256);
  CHECK(merged.key_rows({0, 0}).sealed_rows() == 256);
  CHECK(merged.stats().payload < dense.stats().payload / 2);
  CHECK(difference(merged, dense) < 2e-2);
}

TEST_CASE("Evictions that are equal in all layers go with merging, dead rows of shared blocks are not read") {
  const Context context(400);
  kvc::KVCache merged(Shape, kvc::StreamingLLM{.budget = 64} | HalfWay{}, Exact);
  kvc::KVCache expected(Shape, kvc::StreamingLLM{.budget = 64}, Exact);
  context.prefill(merged, 200);
  context.prefill(expected, 200, true);
  CHECK(merged.positions({1, 0}) == expected.positions({1, 0}));
  CHECK(difference(merged, expected) < 2e-6);
  context.decode(merged, 200, 263);
  context.decode(expected, 200, 263);
  CHECK(merged.positions({0, 1}) == expected.positions({0, 1}));
  CHECK(difference(merged, expected) < 2e-6);
}

TEST_CASE("A fork of merged layers goes its own way, and truncating forgets merged tokens") {
  const Context context(300);
  kvc::KVCache merged(Shape, HalfWay{}, Exact);
  kvc::KVCache expected(Shape, kvc::Full{}, Exact);
  context.prefill(merged, 200);
  kvc::KVCache fork = merged.fork();
  context.decode(fork, 200, 300);
  context.prefill(expected, 200, true);
  CHECK(difference(merged, expected) < 2e-6);
  CHECK_FALSE(fork.truncate(150));
  kvc::KVCache shorter(Shape, kvc::Full{}, Exact);
  context.prefill(shorter, 150, true);
  CHECK(difference(fork, shorter) < 2e-6);
}
