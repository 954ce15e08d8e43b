#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/kvc.hpp"
#include "kvc/storage/row_store.hpp"
#include "support/naive_rows.hpp"
#include "support/random_tokens.hpp"

// MiniCache in a cache against the same written plainly, in double precision, with whole copies of what is restored.
namespace {

using kvc::MiniCache, kvc::Retention, naive::Row;

constexpr std::size_t Block = 64;  // tokens merged at a time while decoding
const kvc::CacheShape Shape{.layers = 5, .query_heads = 6, .kv_heads = 2, .head_dim = 16};
const kvc::CacheOptions Exact{.dense = {kvc::Scalar::f32}, .arithmetic = kvc::Arithmetic::exact};

double dot(const Row& a, const Row& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// One side of one head in two layers: rows as attention reads them.
struct Side {
  std::vector<Row> below, here;

  /// Interpolates the rows from `first` on; returns which stay.
  std::vector<bool> merge(std::size_t first, const MiniCache& policy) {
    std::vector<double> angle;
    for (std::size_t i = first; i < here.size(); ++i) {
      const double cosine = dot(below[i], here[i]) / length(below[i]) / length(here[i]);
      angle.push_back(std::acos(std::clamp(cosine, -1 + 1e-6, 1 - 1e-6)));
    }
    std::vector<bool> stays(angle.size());
    for (std::size_t i = 0; i < angle.size(); ++i) stays[i] = retained(angle, i, policy);
    for (std::size_t i = 0; i < angle.size(); ++i)
      if (!stays[i]) interpolate(below[first + i], here[first + i], angle[i], policy.t);
    return stays;
  }

 private:
  static double length(const Row& x) { return std::max(std::sqrt(dot(x, x)), 1e-6); }
  static bool retained(const std::vector<double>& angle, std::size_t i, const MiniCache& policy) {
    if (policy.retention == Retention::none) return false;
    if (policy.retention == Retention::count) {
      std::size_t before = 0;
      for (std::size_t j = 0; j < angle.size(); ++j) before += angle[j] > angle[i] || (angle[j] == angle[i] && j < i);
      return double(before) < std::ceil(policy.ratio * double(angle.size()));
    }
    const double low = *std::min_element(angle.begin(), angle.end()),
                 high = *std::max_element(angle.begin(), angle.end());
    if (policy.retention == Retention::far) return angle[i] > std::lerp(high, low, policy.gamma);
    return angle[i] < std::lerp(low, high, policy.gamma);
  }
  static void interpolate(Row& x, Row& y, double angle, double t) {
    const double length_x = length(x), length_y = length(y);
    Row e(x.size());
    for (std::size_t c = 0; c < e.size(); ++c)
      e[c] = std::sin((1 - t) * angle) * x[c] / length_x + std::sin(t * angle) * y[c] / length_y;
    const double norm = std::sqrt(dot(e, e));
    for (std::size_t c = 0; c < e.size(); ++c) {
      x[c] = e[c] / norm * length_x;
      y[c] = e[c] / norm * length_y;
    }
  }
};

/// A sequence in the cache and in the model, fed the same tokens.
template <class Policy>
class Twins {
 public:
  Twins(const Policy& policy, const MiniCache& merging) : cache(Shape, policy, Exact), merging_(merging) {
    for (std::size_t layer = 0; layer < Shape.layers; ++layer) tokens_.emplace_back(Shape, 400, unsigned(layer));
    for (auto* side : {&keys_, &values_}) side->resize(Shape.layers * Shape.kv_heads);
  }
  Twins fork() const { return Twins(*this); }

  std::size_t size() const { return keys_[0].size(); }

  void prompt(std::size_t count, std::size_t chunk) {
    const std::size_t begin = size();
    for (std::size_t done = 0; done < count; done += chunk)
      for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
        const std::size_t part = std::min(chunk, count - done);
        cache.prefill(layer, tokens_[layer].tokens(begin + done, part), {}, done + part == count);
      }
    append(count);
    merge();
  }
  /// One token; returns the largest difference of what the layers answer.
  double step() {
    const std::size_t token = size();
    append(1);
    double worst = 0;
    for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
      support::Outputs out(Shape, 1);
      cache.decode(layer, tokens_[layer].tokens(token, 1), out.rows(0, 1));
      worst = std::max(worst, difference(layer, tokens_[layer].tokens(token, 1).q, out));
    }
    if (size() - merged_until_ >= Block) merge();
    return worst;
  }
  bool truncate(std::size_t from) {
    for (auto* side : {&keys_, &values_})
      for (std::vector<Row>& rows : *side) rows.resize(from);
    merged_until_ = std::min(merged_until_, from);
    return cache.truncate(kvc::Position(from));
  }
  /// The largest difference of attention, and of the rows themselves.
  double difference() const {
    double worst = 0;
    for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
      support::Outputs out(Shape, 1);
      const kvc::ConstRows query = tokens_[layer].tokens(399, 1).q;
      cache.attend(layer, query, out.rows(0, 1));
      worst = std::max(worst, difference(layer, query, out));
      for (std::size_t head = 0; head < Shape.kv_heads; ++head) worst = std::max(worst, row_difference(layer, head));
    }
    return worst;
  }
  std::size_t retained_keys = 0, retained_values = 0, retained_both = 0;

  kvc::KVCache<Policy> cache;

 private:
  Twins(const Twins& other)
      : cache(other.cache.fork()),
        merging_(other.merging_),
        tokens_(other.tokens_),
        keys_(other.keys_),
        values_(other.values_),
        merged_until_(other.merged_until_) {}

  void append(std::size_t count) {
    const std::size_t begin = size();
    for (std::size_t layer = 0; layer < Shape.layers; ++layer)
      for (std::size_t t = begin; t < begin + count; ++t)
        for (std::size_t head = 0; head < Shape.kv_heads; ++head) {
          const kvc::Tokens token = tokens_[layer].tokens(t, 1);
          const auto row = [&](kvc::ConstRows rows) {
            const auto part = rows[0].subspan(head * Shape.head_dim, Shape.head_dim);
            return Row(part.begin(), part.end());
          };
          keys_[layer * Shape.kv_heads + head].push_back(row(token.k));
          values_[layer * Shape.kv_heads + head].push_back(row(token.v));
        }
  }
  void merge() {
    for (std::size_t layer = 1; layer < Shape.layers; ++layer) {
      if (!merging_.pairs(layer, Shape)) continue;
      for (std::size_t head = layer * Shape.kv_heads; head < (layer + 1) * Shape.kv_heads; ++head) {
        const auto merged = [&](std::vector<std::vector<Row>>& rows) {
          Side side{rows[head - Shape.kv_heads], rows[head]};
          const std::vector<bool> stays = side.merge(merged_until_, merging_);
          rows[head - Shape.kv_heads] = side.below;
          rows[head] = side.here;
          return stays;
        };
        const std::vector<bool> k = merged(keys_), v = merged(values_);
        for (std::size_t i = 0; i < k.size(); ++i) {
          retained_keys += k[i];
          retained_values += v[i];
          retained_both += k[i] && v[i];
        }
      }
    }
    merged_until_ = size();
  }
  double difference(std::size_t layer, kvc::ConstRows query, const support::Outputs& out) const {
    double worst = 0;
    for (std::size_t q = 0; q < Shape.query_heads; ++q) {
      const std::size_t head = layer * Shape.kv_heads + q / Shape.group();
      const auto part = query[0].subspan(q * Shape.head_dim, Shape.head_dim);
      std::vector<double> weights;
      for (const Row& key : keys_[head])
        weights.push_back(std::exp(dot(Row(part.begin(), part.end()), key) / std::sqrt(double(Shape.head_dim))));
      const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
      for (std::size_t c = 0; c < Shape.head_dim; ++c) {
        double expected = 0;
        for (std::size_t t = 0; t < weights.size(); ++t) expected += weights[t] / sum * values_[head][t][c];
        worst = std::max(worst, std::fabs(double(out.values()[q * Shape.head_dim + c]) - expected));
      }
    }
    return worst;
  }
  double row_difference(std::size_t layer, std::size_t head) const {
    const std::size_t dim = Shape.head_dim;
    std::vector<float> k(size() * dim), v(size() * dim);
    cache.gather({std::uint32_t(layer), std::uint32_t(head)}, {k.data(), size(), dim}, {v.data(), size(), dim});
    double worst = 0;
    for (std::size_t t = 0; t < size(); ++t)
      for (std::size_t c = 0; c < dim; ++c)
        worst = std::max({worst, std::fabs(double(k[t * dim + c]) - keys_[layer * Shape.kv_heads + head][t][c]),
                          std::fabs(double(v[t * dim + c]) - values_[layer * Shape.kv_heads + head][t][c])});
    return worst;
  }

  MiniCache merging_;
  std::vector<support::RandomTokens> tokens_;
  std::vector<std::vector<Row>> keys_, values_;  // per layer and head
  std::size_t merged_until_ = 0;
};
template <class Policy>
Twins(const Policy&, const MiniCache&) -> Twins<Policy>;

constexpr double Tolerance = 2e-5;

}  // namespace

TEST_CASE("MiniCache answers as the plain model does: prompt in chunks, 140 steps, at every instruction set") {
  for (const kvc::Isa isa : kvc::AllIsas) {
    if (!kvc::is_available(isa)) continue;
    const kvc::ScopedIsa scoped(isa);
    for (const Retention retention : {Retention::far, Retention::literal, Retention::count, Retention::none}) {
      const MiniCache policy{.start = 0.2, .retention = retention, .gamma = 0.2, .ratio = 0.1};
      Twins twins(policy, policy);
      twins.prompt(150, 150);
      double worst = twins.difference();
      for (int i = 0; i < 140; ++i) worst = std::max(worst, twins.step());
      CHECK(worst < Tolerance);
      CHECK(twins.difference() < Tolerance);
      CHECK((twins.retained_keys > 0) == (retention != Retention::none));
      // Retained apart: attention reads keys and values that lie in different orders.
      CHECK(
          (retention == Retention::none || twins.retained_both < std::min(twins.retained_keys, twins.retained_values)));
    }
  }
}

TEST_CASE("A prompt of MiniCache fed in chunks is merged as one fed whole, once it ends") {
  const MiniCache policy{.start = 0.2, .retention = Retention::count};
  for (const std::size_t chunk : {1u, 7u, 64u, 100u}) {
    Twins twins(policy, policy);
    twins.prompt(100, chunk);
    CHECK(twins.difference() < Tolerance);
  }
}

TEST_CASE("The extremes of MiniCache's parameters: one layer's directions, nothing retained, everything, one token") {
  for (const MiniCache& policy :
       {MiniCache{.t = 0, .start = 0}, MiniCache{.t = 1, .start = 0}, MiniCache{.start = 0, .gamma = 0},
        MiniCache{.start = 0, .gamma = 1}, MiniCache{.start = 0, .retention = Retention::count, .ratio = 1},
        MiniCache{.start = 0, .retention = Retention::count, .ratio = 0}, MiniCache{.chosen = {{1, 2}, {3, 4}}},
        MiniCache{.start = 1}}) {
    for (const std::size_t prompt : {1u, 2u, 70u}) {
      INFO("t " << policy.t << ", gamma " << policy.gamma << ", ratio " << policy.ratio << ", prompt " << prompt);
      Twins twins(policy, policy);
      twins.prompt(prompt, prompt);
      double worst = 0;
      for (int i = 0; i < 70; ++i) worst = std::max(worst, twins.step());
      CHECK(worst < Tolerance);
      CHECK(twins.difference() < Tolerance);
    }
  }
}

TEST_CASE("With t = 0 the lower layer, with t = 1 the upper one reads as if nothing had been merged") {
  for (const std::size_t exact : {0u, 1u}) {
    kvc::KVCache merged(Shape, MiniCache{.t = double(exact), .start = 0, .retention = Retention::none}, Exact);
    kvc::KVCache full(Shape, kvc::Full{}, Exact);
    for (std::size_t layer = 0; layer < Shape.layers; ++layer)
      for (kvc::CacheCore* cache : {static_cast<kvc::CacheCore*>(&merged), static_cast<kvc::CacheCore*>(&full)})
        cache->prefill(layer, support::RandomTokens(Shape, 40, unsigned(layer)).tokens(0, 40), {});
    support::Outputs a(Shape, 1), b(Shape, 1);
    const support::RandomTokens query(Shape, 1, 77);
    merged.attend(exact, query.tokens(0, 1).q, a.rows(0, 1));
    full.attend(exact, query.tokens(0, 1).q, b.rows(0, 1));
    for (std::size_t i = 0; i < a.values().size(); ++i) CHECK(a.values()[i] == Approx(b.values()[i]).margin(1e-5));
  }
}

TEST_CASE("Forks of merged layers go their own ways; a truncated one goes on from what was merged") {
  const MiniCache policy{.start = 0.2, .retention = Retention::count, .ratio = 0.1};
  Twins twins(policy, policy);
  twins.prompt(100, 100);
  for (int i = 0; i < 70; ++i) twins.step();
  Twins fork = twins.fork();
  for (int i = 0; i < 20; ++i) CHECK(fork.step() < Tolerance);
  CHECK(fork.truncate(180));  // nothing was merged since
  CHECK_FALSE(fork.truncate(130));
  CHECK(fork.difference() < Tolerance);
  double worst = 0;
  for (int i = 0; i < 140; ++i) worst = std::max({worst, fork.step(), i < 60 ? twins.step() : 0});
  CHECK(worst < Tolerance);
  CHECK(fork.difference() < Tolerance);
  CHECK(twins.difference() < Tolerance);
}

TEST_CASE("Rows of zeros and rows that oppose each other leave attention finite") {
  kvc::KVCache cache(Shape, MiniCache{.t = 0.5, .start = 0}, Exact);
  const std::size_t width = Shape.kv_heads * Shape.head_dim, tokens = 40;
  const support::RandomTokens random(Shape, tokens, 3);
  const kvc::Tokens rows = random.tokens(0, tokens);
  for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
    std::vector<float> x(rows.k.data, rows.k.data + tokens * width);
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] *= i / width % 3 == 0 ? 0.0f : (i / width % 3 == 1 && layer % 2 == 1) ? -1.0f : 1.0f;
    cache.prefill(layer, {.q = rows.q, .k = {x.data(), tokens, width}, .v = {x.data(), tokens, width}}, {});
  }
  for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
    support::Outputs out(Shape, 1);
    cache.attend(layer, rows.q.subrows(0, 1), out.rows(0, 1));
    CHECK(std::all_of(out.values().begin(), out.values().end(), [](float x) { return std::isfinite(x); }));
  }
}

TEST_CASE("MiniCache | KIVI seals directions, in whole groups of keys; norms stay exact") {
  const kvc::CacheShape shape{.layers = 2, .query_heads = 2, .kv_heads = 1, .head_dim = 32};
  constexpr kvc::KIVI Quantizer{.bits = 4, .residual = 32, .metadata = kvc::Scalar::f32};
  constexpr std::size_t Tokens = 266, Whole = 256, Dim = 32;
  const MiniCache policy{.start = 0, .retention = Retention::none};
  kvc::KVCache sealed(shape, policy | Quantizer, Exact);
  kvc::KVCache dense(shape, policy, Exact);
  for (std::size_t layer = 0; layer < 2; ++layer)
    for (kvc::CacheCore* cache : {static_cast<kvc::CacheCore*>(&sealed), static_cast<kvc::CacheCore*>(&dense)})
      cache->prefill(layer, support::RandomTokens(shape, Tokens, unsigned(layer)).tokens(0, Tokens), {});
  const kvc::Streams streams = Quantizer.quantize({}, {});
  for (std::uint32_t layer = 0; layer < 2; ++layer) {
    std::vector<float> k(Tokens * Dim), v(k), exact_k(k), exact_v(k);
    sealed.gather({layer, 0}, {k.data(), Tokens, Dim}, {v.data(), Tokens, Dim});
    dense.gather({layer, 0}, {exact_k.data(), Tokens, Dim}, {exact_v.data(), Tokens, Dim});
    const auto compare = [&](const std::vector<float>& got, const std::vector<float>& merged, const kvc::Stream& stream,
                             std::size_t quantized) {
      std::vector<Row> directions;
      std::vector<double> norms;
      std::vector<Row*> rows;
      for (std::size_t t = 0; t < Tokens; ++t) {
        directions.emplace_back(merged.begin() + std::ptrdiff_t(t * Dim),
                                merged.begin() + std::ptrdiff_t((t + 1) * Dim));
        norms.push_back(std::sqrt(dot(directions[t], directions[t])));
        for (double& x : directions[t]) x /= norms[t];
      }
      for (std::size_t t = 0; t < quantized; ++t) rows.push_back(&directions[t]);
      naive::quantize_together(rows, *stream.format->get_if<kvc::GroupQuant>());
      std::size_t far = 0;
      for (std::size_t i = 0; i < got.size(); ++i)
        far += std::fabs(double(got[i]) - directions[i / Dim][i % Dim] * norms[i / Dim]) > 1e-5;
      CHECK(far < got.size() / 1000);  // a direction that lies between two codes may be rounded either way
    };
    compare(k, exact_k, streams.key, Whole);
    compare(v, exact_v, streams.value, Tokens);
  }
}

TEST_CASE("While decoding, tokens that wait to be merged are not sealed, so none is rounded twice") {
  const kvc::CacheShape shape{.layers = 2, .query_heads = 2, .kv_heads = 1, .head_dim = 32};
  constexpr kvc::KIVI Quantizer{.bits = 4, .residual = 32};
  kvc::KVCache cache(shape, MiniCache{.start = 0, .retention = Retention::none} | Quantizer, Exact);
  const support::RandomTokens tokens(shape, 200, 5);
  for (std::size_t t = 0; t < 128 + 63; ++t)
    for (std::size_t layer = 0; layer < 2; ++layer) {
      support::Outputs out(shape, 1);
      cache.decode(layer, tokens.tokens(t, 1), out.rows(0, 1));
      CHECK(cache.key_rows({std::uint32_t(layer), 0}).sealed_rows() == (layer == 1 ? t + 1 : t) / Block * Block);
    }
}

TEST_CASE("Values that are retained and then sealed one by one fill one block, however often tokens merge") {
  const kvc::CacheShape shape{.layers = 2, .query_heads = 2, .kv_heads = 1, .head_dim = 32};
  kvc::KVCache cache(shape, MiniCache{.start = 0} | kvc::KIVI{.bits = 4, .residual = 32}, Exact);
  const support::RandomTokens tokens(shape, 10 * Block, 6), above(shape, 10 * Block, 7);
  for (std::size_t t = 0; t < 10 * Block; ++t)
    for (std::size_t layer = 0; layer < 2; ++layer) {
      support::Outputs out(shape, 1);
      cache.decode(layer, (layer == 0 ? tokens : above).tokens(t, 1), out.rows(0, 1));
    }
  std::size_t open = 0, retained = 0;
  for (const kvc::Segment& segment : cache.value_rows({0, 0}).segments()) {
    if (!segment.sealed || segment.norms) continue;
    ++open;
    retained += segment.rows() - segment.dead;
  }
  CHECK(open == 1);
  CHECK(retained >= 8);
}

TEST_CASE("The bytes of merged layers are those of one layer's rows and of two norms per token, as computed") {
  const kvc::CacheShape shape{.layers = 4, .query_heads = 6, .kv_heads = 2, .head_dim = 64};
  constexpr std::size_t Tokens = 512, Dim = 64, Sides = 4;  // sides: keys and values of two heads, of a layer
  const auto bytes = [&](auto policy) {
    kvc::KVCache cache(shape, policy);
    for (std::size_t layer = 0; layer < shape.layers; ++layer)
      cache.prefill(layer, support::RandomTokens(shape, Tokens, unsigned(layer)).tokens(0, Tokens), {});
    kvc::Stats both = cache.stats(2);
    return both += cache.stats(3);
  };
  // Structures: segments, blocks, shared pointers; per layer, side and block of 256 rows.
  constexpr std::size_t Structures = 2 * Sides * (Tokens / 256 + 2) * 200;
  const std::size_t norms = Sides * 2 * Tokens * sizeof(float);

  const kvc::Stats dense = bytes(MiniCache{.retention = Retention::none});
  CHECK(dense.payload == Sides * Tokens * Dim * 2);
  CHECK((dense.metadata >= norms && dense.metadata < norms + Structures));
  CHECK((dense.slack == 0 && dense.dead == 0));

  const kvc::Stats sealed = bytes(MiniCache{.retention = Retention::none} | kvc::KIVI{.bits = 4});
  CHECK(sealed.payload == Sides * (Tokens * Dim / 2 + Tokens * Dim / 32 * 4));
  CHECK((sealed.metadata >= norms && sealed.metadata < norms + Structures));

  // Retained rows come in tiles of 16, and every slot has a row number once they break the order.
  const kvc::Stats retained = bytes(MiniCache{.retention = Retention::count, .ratio = 0.25});
  constexpr std::size_t Kept = Tokens / 4;
  CHECK(retained.payload == Sides * ((Tokens - Kept) * Dim * 2 + 2 * Kept * Dim * 2));
  const std::size_t maps = 2 * Sides * Tokens * sizeof(std::int32_t);
  CHECK(retained.metadata < norms + maps + maps / 4 + Structures);
  CHECK((retained.slack == 0 && retained.dead == 0));
}
