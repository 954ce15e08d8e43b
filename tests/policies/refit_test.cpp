// Policies that fit matrices: what they find out against the plainest arithmetic, in double.
#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/codec/make.hpp"
#include "kvc/kvc.hpp"
#include "kvc/policies/attention_matching.hpp"
#include "kvc/policies/compact.hpp"
#include "support/multiplicity_listener.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;
using support::MultiplicityListener;

namespace {

using Matrix = Eigen::MatrixXd;

const CacheShape Shape{
    .layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 32, .rotary = Rotary::standard(16)};
constexpr std::size_t Prompt = 200, Probe = 150;
constexpr CacheOptions Exact{.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact};

const support::LayeredTokens& text() {
  static const support::LayeredTokens tokens(Shape, Prompt + Probe, 5);
  return tokens;
}
void feed(CacheCore& cache, bool probes = true, std::size_t part = Prompt) {
  for (std::size_t first = 0; first < Prompt; first += part)
    for (std::size_t layer = 0; layer < Shape.layers; ++layer)
      cache.prefill(layer, text().tokens(layer, first, std::min(part, Prompt - first)), {}, false);
  for (std::size_t layer = 0; probes && layer < Shape.layers; ++layer)
    cache.probe(layer, text().tokens(layer, Prompt, Probe), {}, 0, Position(Prompt));
}

/// What the cache holds of a head.
struct Held {
  std::vector<Position> positions;
  Matrix keys, values;
};
Held held(const CacheCore& cache, HeadId id) {
  Held head{cache.positions(id), {}, {}};
  const std::size_t slots = head.positions.size();
  std::vector<float> keys(slots * Shape.head_dim), values(slots * Shape.values_dim());
  cache.gather(id, {keys.data(), slots, Shape.head_dim}, {values.data(), slots, Shape.values_dim()});
  const auto matrix = [](const std::vector<float>& from, std::size_t rows) {
    using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    return Matrix(
        Eigen::Map<const Floats>(from.data(), Eigen::Index(rows), Eigen::Index(from.size() / rows)).cast<double>());
  };
  head.keys = matrix(keys, slots);
  head.values = matrix(values, slots);
  return head;
}

/// The reference rows of a head by the book: every second token of the prompt, moved, and of the probe.
struct Rows64 {
  Matrix queries, outputs;
  Eigen::VectorXd lse, weights;
};
Rows64 rows_of(HeadId id, bool probes) {
  const std::size_t group = Shape.group(), dim = Shape.head_dim;
  const auto key = [&](std::size_t t) { return text().tokens(id.layer, t, 1).k[0].subspan(id.head * dim, dim); };
  std::vector<std::vector<double>> queries;
  std::vector<double> beside;  // log-sum-exp of what competes with the prompt
  const auto logit = [&](const std::vector<double>& q, std::size_t t) {
    double dot = 0;
    for (std::size_t c = 0; c < dim; ++c) dot += q[c] * double(key(t)[c]);
    return dot / 4;
  };
  for (std::size_t t = 0; t < (probes ? Prompt + Probe : Prompt); t += 2)
    for (std::size_t g = 0; g < group; ++g) {
      const auto row = text().tokens(id.layer, t, 1).q[0].subspan((id.head * group + g) * dim, dim);
      std::vector<double> q(row.begin(), row.end());
      double sum = 0;
      for (std::size_t i = t < Prompt ? t / 128 * 128 : Prompt; i <= t; ++i) sum += std::exp(logit(q, i));
      beside.push_back(std::log(sum));
      if (t < Prompt) {  // pairs (i, i + 8) turn by the frequencies
        const double turn = double(Prompt) + double(t % 128) - double(t);
        for (std::size_t i = 0; i < dim / 2; ++i) {
          const double angle = turn * double(Shape.rotary.inv_freq[i]), x = q[i], y = q[i + dim / 2];
          q[i] = x * std::cos(angle) - y * std::sin(angle);
          q[i + dim / 2] = x * std::sin(angle) + y * std::cos(angle);
        }
      }
      queries.push_back(q);
    }
  Rows64 rows{Matrix(queries.size(), dim), Matrix::Zero(Eigen::Index(queries.size()), Eigen::Index(Shape.values_dim())),
              Eigen::VectorXd(queries.size()), Eigen::VectorXd(queries.size())};
  for (std::size_t r = 0; r < queries.size(); ++r) {
    double sum = 0;
    for (std::size_t t = 0; t < Prompt; ++t) sum += std::exp(logit(queries[r], t));
    const Eigen::Index at = Eigen::Index(r);
    rows.lse[at] = std::log(sum);
    rows.weights[at] = 1 / (1 + std::exp(beside[r] - rows.lse[at]));
    for (std::size_t c = 0; c < dim; ++c) rows.queries(at, Eigen::Index(c)) = queries[r][c];
    for (std::size_t t = 0; t < Prompt; ++t) {
      const auto value = text().tokens(id.layer, t, 1).v[0].subspan(id.head * Shape.values_dim(), Shape.values_dim());
      const double share = std::exp(logit(queries[r], t) - rows.lse[at]);
      for (std::size_t c = 0; c < value.size(); ++c) rows.outputs(at, Eigen::Index(c)) += share * double(value[c]);
    }
  }
  return rows;
}

/// By how much attention over kept keys and values misses the outputs of the whole head, in weighted squares.
double missed(const Rows64& rows, const Held& head, const std::vector<double>& tokens) {
  Matrix shares = (rows.queries * head.keys.transpose() / 4).array().exp();
  for (Eigen::Index i = 0; i < shares.cols(); ++i) shares.col(i) *= tokens[std::size_t(i)];
  const Eigen::VectorXd sums = shares.rowwise().sum();
  shares = sums.cwiseInverse().asDiagonal() * Matrix(shares);
  return (rows.weights.asDiagonal() * (rows.outputs - shares * head.values)).squaredNorm();
}

}  // namespace

TEST_CASE("Refit finds the multiplicities and values of ridge least squares over the kept tokens") {
  const double ridge = 0.03;
  CacheCore cache(Shape, stages_of(Refit{.policy = Knorm{}, .budget = 40, .bits = 16} | MultiplicityListener{}), Exact);
  CacheCore plain(Shape, stages_of(Full{}), Exact);
  feed(cache);
  feed(plain);
  cache.compress();
  for (const HeadId id : {HeadId{0, 0}, HeadId{1, 1}}) {
    const Rows64 rows = rows_of(id, true);
    const Held kept = held(cache, id), all = held(plain, id);
    const std::vector<float>& tokens = cache.state<MultiplicityListener>(id).tokens;
    REQUIRE(tokens.size() == kept.positions.size());
    Matrix values(kept.values.rows(), kept.values.cols());
    for (std::size_t i = 0; i < kept.positions.size(); ++i)
      values.row(Eigen::Index(i)) = all.values.row(kept.positions[i]);

    // Multiplicities: shares, weighted; the bounds are not reached here, or the active set has fixed them.
    Matrix shares = ((rows.queries * kept.keys.transpose() / 4).colwise() - rows.lse).array().exp();
    const Matrix weighted = rows.weights.asDiagonal() * shares;
    Matrix gram = weighted.transpose() * weighted;
    const double mean = gram.diagonal().mean();
    Eigen::VectorXd counts(shares.cols());
    for (Eigen::Index i = 0; i < counts.size(); ++i) counts[i] = double(tokens[std::size_t(i)]);
    const Eigen::VectorXd slope =
        weighted.transpose() * (rows.weights - weighted * counts) + ridge * mean * (1 - counts.array()).matrix();
    for (Eigen::Index i = 0; i < counts.size(); ++i) {
      INFO("slot " << i << " stands for " << counts[i]);
      if (counts[i] > 0.11 && counts[i] < 19.9)
        CHECK(std::abs(slope[i]) < 0.02 * mean);  // f16 rounds the numbers afterwards
    }

    // Values, given those numbers.
    shares = shares * counts.asDiagonal();
    const Eigen::VectorXd sums = shares.rowwise().sum();
    shares = rows.weights.cwiseQuotient(sums).asDiagonal() * Matrix(shares);
    gram = shares.transpose() * shares;
    gram.diagonal().array() += ridge * gram.diagonal().mean();
    const Matrix expected =
        values + gram.llt().solve(shares.transpose() * (rows.weights.asDiagonal() * rows.outputs - shares * values));
    CHECK((kept.values - expected).norm() < 1e-3 * expected.norm());
  }
}

TEST_CASE("Refit's codes miss the outputs less than values rounded one by one") {
  for (const unsigned bits : {3u, 4u}) {
    CacheCore fitted(Shape, stages_of(Refit{.policy = Knorm{}, .budget = 65, .bits = bits} | MultiplicityListener{}),
                     Exact);
    CacheCore exact(Shape, stages_of(Refit{.policy = Knorm{}, .budget = 65, .bits = 16} | MultiplicityListener{}),
                    Exact);
    for (CacheCore* cache : {&fitted, &exact}) {
      feed(*cache);
      cache->compress();
    }
    double with_codes = 0, rounded = 0;
    for (std::uint32_t layer = 0; layer < 2; ++layer)
      for (std::uint32_t head = 0; head < 2; ++head) {
        const HeadId id{layer, head};
        const Rows64 rows = rows_of(id, true);
        const auto tokens_of = [&](const CacheCore& cache) {
          const auto& tokens = cache.state<MultiplicityListener>(id).tokens;
          return std::vector<double>(tokens.begin(), tokens.end());
        };
        with_codes += missed(rows, held(fitted, id), tokens_of(fitted));
        // The same fit of dense rows, quantized afterwards: keys in the same groups, values one by one.
        Held plain = held(exact, id);
        const auto quantize = [&](Matrix& matrix, Role role, const GroupQuant& format) {
          const auto count = std::size_t(matrix.rows()) - 1, dim = std::size_t(matrix.cols());
          const auto codec = make_codec(format, role, dim);
          Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> floats =
              matrix.bottomRows(Eigen::Index(count)).cast<float>();
          std::vector<std::byte> block(codec->block_bytes(count) + 64);
          codec->encode({floats.data(), count, dim}, block.data(), count, 0);
          codec->decode(block.data(), count, 0, {floats.data(), count, dim});
          matrix.bottomRows(Eigen::Index(count)) = floats.cast<double>();
        };
        quantize(plain.keys, Role::key,
                 {.bits = bits, .axis = Axis::channel, .group = std::size_t(plain.keys.rows()) - 1});
        quantize(plain.values, Role::value, {.bits = bits, .axis = Axis::token, .group = 32});
        rounded += missed(rows, plain, tokens_of(exact));
      }
    INFO(bits << " bits: " << with_codes << " against " << rounded);
    CHECK(with_codes < rounded);
  }
}

TEST_CASE("Pursuit scores every token by the gain of the step that chooses it") {
  constexpr std::size_t Steps = 20;
  CacheCore cache(Shape, stages_of(Pursuit{.budget = Steps, .sinks = 2, .steps = Steps}), Exact);
  CacheCore plain(Shape, stages_of(Full{}), Exact);
  feed(cache);
  feed(plain);
  cache.compress();
  for (const HeadId id : {HeadId{0, 1}, HeadId{1, 0}}) {
    const Rows64 rows = rows_of(id, true);
    const Held all = held(plain, id);
    const Matrix shares = ((rows.queries * all.keys.transpose() / 4).colwise() - rows.lse).array().exp();
    const Matrix columns = rows.weights.asDiagonal() * shares;
    Matrix targets(rows.outputs.rows(), rows.outputs.cols() + 1);
    targets.leftCols(rows.outputs.cols()) = rows.outputs;
    const Matrix apart = rows.outputs.rowwise() - rows.outputs.colwise().mean();
    targets.rightCols(1).setConstant(0.5 * std::sqrt(apart.rowwise().squaredNorm().mean()));
    targets = rows.weights.asDiagonal() * targets;
    // Each step: the token with which ridge least squares over the chosen ones leaves the least.
    const double ridge = 0.003 * columns.colwise().squaredNorm().mean();
    std::vector<Position> chosen = {0, 1};
    const auto left = [&](const std::vector<Position>& tokens) {
      const Matrix some = columns(Eigen::all, tokens), products = some.transpose() * targets;
      Matrix gram = some.transpose() * some;
      gram.diagonal().array() += ridge;
      return -(products.transpose() * gram.llt().solve(products)).trace();
    };
    while (chosen.size() < Steps) {
      std::pair<double, Position> best{1e300, -1};
      for (Position t = 0; t < Position(Prompt); ++t) {
        if (std::ranges::find(chosen, t) != chosen.end()) continue;
        std::vector<Position> tried = chosen;
        tried.push_back(t);
        best = std::min(best, {left(tried), t});
      }
      chosen.push_back(best.second);
    }
    std::ranges::sort(chosen);
    CHECK(cache.positions(id) == chosen);
  }
}

TEST_CASE("Foresight keeps what one of the moved queries attends to most") {
  CacheCore cache(Shape, stages_of(Foresight{.budget = 30, .sinks = 0}), Exact);
  CacheCore plain(Shape, stages_of(Full{}), Exact);
  feed(cache, false);
  feed(plain, false);
  cache.compress();
  const HeadId id{1, 0};
  const Rows64 rows = rows_of(id, false);
  const Matrix shares = ((rows.queries * held(plain, id).keys.transpose() / 4).colwise() - rows.lse).array().exp();
  const Eigen::VectorXd most = (rows.weights.asDiagonal() * shares).colwise().maxCoeff().transpose();
  std::vector<Position> order(Prompt);
  for (std::size_t t = 0; t < Prompt; ++t) order[t] = Position(t);
  std::ranges::stable_sort(order, std::greater<>(), [&](Position t) { return most[t]; });
  order.resize(30);
  std::ranges::sort(order);
  CHECK(cache.positions(id) == order);
}

TEST_CASE("Compact gives every head whole blocks of 32 tokens besides the first, and holds its share of fp16") {
  KVCache cache(Shape, Compact{.budget = 70});
  feed(cache);
  cache.compress();
  std::size_t slots = 0;
  for (std::uint32_t layer = 0; layer < 2; ++layer)
    for (std::uint32_t head = 0; head < 2; ++head) {
      const std::size_t size = cache.positions({layer, head}).size();
      CHECK((size % 32 == 1 || size == Prompt));
      CHECK(cache.positions({layer, head}).front() == 0);
      slots += size;
    }
  CHECK(slots <= 4 * 70 + 4 * 32);
}

TEST_CASE("Compact without a repetition of the prompt says what is missing, and asks for none if it is told so") {
  KVCache strict(Shape, Compact{.budget = 40}), free(Shape, Compact{.budget = 40, .replay = false});
  feed(strict, false);
  feed(free, false);
  CHECK_THROWS_AS(strict.compress(), Error);
  CHECK(strict.positions({0, 0}).size() == Prompt);  // nothing has changed
  free.compress();
  CHECK(free.stats().slots < 4 * Prompt);
  CHECK_FALSE(needs_probe(*Compact{.replay = false}.stages().front()));
  CHECK(needs_probe(*Compact{}.stages().front()));
}

TEST_CASE("The references that a fit looks at do not depend on how the prompt came") {
  KVCache whole(Shape, Compact{.budget = 40}), parts(Shape, Compact{.budget = 40});
  feed(whole);
  feed(parts, true, 37);
  whole.compress();
  parts.compress();
  for (std::uint32_t layer = 0; layer < 2; ++layer)
    for (std::uint32_t head = 0; head < 2; ++head) {
      const Held a = held(whole, {layer, head}), b = held(parts, {layer, head});
      CHECK(a.positions == b.positions);
      CHECK(a.keys == b.keys);
      CHECK(a.values == b.values);
    }
}

namespace {

/// Lists the reference queries that it is shown at the end of a prompt.
struct Referee {
  std::size_t stride = 1, most = 0;

  struct State {
    std::vector<std::uint32_t> numbers;
    std::vector<Position> positions;
    std::vector<float> queries;
  };
  Needs needs() const { return {.query_stride = stride, .query_most = most}; }
  void evict(Head<Referee>& head, Plan&) const {
    if (!head.acts) return;
    const ReferenceQueries shown = head.reference_queries();
    head.state->numbers.assign(shown.numbers.begin(), shown.numbers.end());
    head.state->positions.assign(shown.positions.begin(), shown.positions.end());
    for (std::size_t row = 0; row < shown.queries.count; ++row)
      head.state->queries.insert(head.state->queries.end(), shown.queries[row].begin(), shown.queries[row].end());
  }
};

}  // namespace

TEST_CASE(
    "Reference queries are every so-many-th of the prompt and its probes, the stride doubled until they are few "
    "enough") {
  for (const auto& [stride, most, expected] :
       {std::tuple<std::size_t, std::size_t, std::size_t>{3, 0, 3}, {1, 400, 1}, {1, 349, 2}, {2, 40, 16}}) {
    for (const std::size_t part : {Prompt, std::size_t{37}}) {
      CacheCore cache(Shape, stages_of(Referee{stride, most}), Exact);
      feed(cache, true, part);
      cache.compress();
      const HeadId id{1, 1};
      const auto& shown = cache.state<Referee>(id);
      INFO("stride " << stride << ", most " << most << ", parts of " << part);
      REQUIRE(shown.numbers.size() == (Prompt + Probe + expected - 1) / expected);
      CHECK((most == 0 || shown.numbers.size() <= most));
      for (std::size_t t = 0; t < shown.numbers.size(); ++t) {
        REQUIRE(shown.numbers[t] == t * expected);
        const auto row =
            text().tokens(id.layer, shown.numbers[t], 1).q[0].subspan(id.head * 2 * Shape.head_dim, 2 * Shape.head_dim);
        REQUIRE(std::equal(row.begin(), row.end(), shown.queries.begin() + std::ptrdiff_t(t * row.size())));
      }
    }
  }
}

TEST_CASE("A call that is refused leaves the reference queries as they were, also where it would have thinned them") {
  struct Refusing final : Executor {
    void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
      for (std::size_t i = 0; i < count; ++i) body(i);
      if (refuses && ++calls == 2) throw std::runtime_error("the second piece of work of a call is lost");
    }
    bool refuses = false;
    int calls = 0;
  } refusing;
  CacheOptions options = Exact;
  options.executor = &refusing;
  CacheCore cache(Shape, stages_of(Referee{1, 120}), options), twin(Shape, stages_of(Referee{1, 120}), Exact);
  for (CacheCore* each : {&cache, &twin})
    for (std::size_t layer = 0; layer < 2; ++layer) each->prefill(layer, text().tokens(layer, 0, 100), {}, false);
  refusing.refuses = true;
  CHECK_THROWS(cache.prefill(0, text().tokens(0, 100, 100), {}, false));
  refusing.refuses = false;
  for (CacheCore* each : {&cache, &twin}) {
    for (std::size_t layer = 0; layer < 2; ++layer) each->prefill(layer, text().tokens(layer, 100, 10), {}, false);
    each->compress();
  }
  CHECK(cache.state<Referee>({0, 0}).numbers == twin.state<Referee>({0, 0}).numbers);
  CHECK(cache.state<Referee>({0, 0}).queries == twin.state<Referee>({0, 0}).queries);
  CHECK(cache.state<Referee>({0, 0}).numbers.size() == 110);
}

TEST_CASE(
    "Keys as large as their format holds are compressed to finite rows, and Refit then leaves what it cannot fit") {
  for (const float size : {1e2f, 3e4f}) {
    CacheCore cache(Shape, stages_of(Compact{.budget = 40, .replay = false}));
    for (std::size_t layer = 0; layer < 2; ++layer) {
      const Tokens tokens = text().tokens(layer, 0, Prompt);
      std::vector<float> keys(Prompt * tokens.k.dim);
      for (std::size_t t = 0; t < Prompt; ++t)
        for (std::size_t c = 0; c < tokens.k.dim; ++c)
          keys[t * tokens.k.dim + c] = std::clamp(tokens.k[t][c] * size / 4, -size, size);
      cache.prefill(layer, {.q = tokens.q, .k = {keys.data(), Prompt, tokens.k.dim}, .v = tokens.v}, {});
    }
    for (std::uint32_t layer = 0; layer < 2; ++layer)
      for (std::uint32_t head = 0; head < 2; ++head) {
        const Held kept = held(cache, {layer, head});
        CHECK(kept.keys.allFinite());
        CHECK(kept.values.allFinite());
      }
  }
}

namespace {

/// Feeds the text with its keys and values made so large, and lets the policy act.
void compress_large(CacheCore& cache, float keys, float values, float limit) {
  const auto enlarged = [&](ConstRows rows, float times) {
    std::vector<float> large;
    for (std::size_t t = 0; t < rows.count; ++t)
      for (const float x : rows[t]) large.push_back(std::clamp(x * times, -limit, limit));
    return large;
  };
  for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
    for (const bool probe : {false, true}) {
      const std::size_t count = probe ? Probe : Prompt;
      Tokens tokens = text().tokens(layer, probe ? Prompt : 0, count);
      const std::vector<float> k = enlarged(tokens.k, keys), v = enlarged(tokens.v, values);
      tokens.k = {k.data(), count, tokens.k.dim};
      tokens.v = {v.data(), count, tokens.v.dim};
      if (probe)
        cache.probe(layer, tokens, {}, 0, Position(Prompt));
      else
        cache.prefill(layer, tokens, {}, false);
    }
  }
  cache.compress();
}

}  // namespace

TEST_CASE("Values that a fit would make larger than the format of their layer holds are held within it") {
  const std::vector<Stages> policies = {
      stages_of(Refit{.policy = Knorm{}, .budget = 24}), stages_of(Refit{.policy = Knorm{}, .budget = 24, .bits = 16}),
      stages_of(Compact{.budget = 24}), stages_of(Pursuit{.budget = 24}), stages_of(AttentionMatching{.budget = 24})};
  struct Size {
    Scalar dense;
    float keys, values, limit;
  };
  for (const auto& [dense, keys, values, limit] :
       {Size{Scalar::f16, 1, 3e4f, 65504}, Size{Scalar::f16, 3e4f, 1, 65504}, Size{Scalar::f16, 3e4f, 3e4f, 65504},
        Size{Scalar::f16, 1, 2e6f, 65504}, Size{Scalar::f32, 1, 1e12f, 6e4f}})
    for (const Stages& stages : policies) {
      INFO(stages.front()->type().text << ", keys times " << keys << ", values times " << values);
      CacheCore cache(Shape, stages, {.dense = {dense}});
      REQUIRE_NOTHROW(compress_large(cache, keys, values, limit));
      for (const HeadId id : {HeadId{0, 0}, HeadId{0, 1}, HeadId{1, 0}, HeadId{1, 1}}) {
        const Held kept = held(cache, id);
        CHECK(kept.positions.size() < Prompt);
        CHECK(kept.keys.allFinite());
        CHECK(kept.values.allFinite());
      }
    }
}
