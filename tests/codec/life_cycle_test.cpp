#include "catch_shim.hpp"

#include <cmath>
#include <vector>

#include "codec/hadamard_codec.hpp"
#include "codec/low_rank_codec.hpp"
#include "codec/pre_rotary_codec.hpp"
#include "kvc/attention/partial.hpp"
#include "kvc/codec/make.hpp"
#include "kvc/storage/head_store.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;

namespace {

constexpr std::size_t Dim = 32, Group = 3;

CacheShape shape() {
  return {.query_heads = Group, .kv_heads = 1, .head_dim = Dim, .rotary = Rotary::standard(Dim)};
}

/// One head under attention, with the rows that it was given.
struct Subject {
  CacheShape model = shape();
  HeadStore head;
  Workspace workspace;
  support::Dice dice{3};
  std::vector<float> keys, values;
  Position next = 0;

  Subject(Stream key, Stream value)
      : head(model, {std::move(key), std::move(value)}, Dense{Scalar::f32}, {}, std::pmr::new_delete_resource()) {}

  /// `row(token)` gives the key and value of a token.
  template <class Row>
  void append(std::size_t count, Row row) {
    std::vector<float> k, v;
    std::vector<Position> positions;
    for (std::size_t i = 0; i < count; ++i) {
      const auto [key, value] = row(next);
      k.insert(k.end(), key.begin(), key.end());
      v.insert(v.end(), value.begin(), value.end());
      positions.push_back(next++);
    }
    head.append({k.data(), count, Dim}, {v.data(), count, Dim}, positions);
    keys.insert(keys.end(), k.begin(), k.end());
    values.insert(values.end(), v.begin(), v.end());
  }
  void append_random(std::size_t count) {
    append(count, [&](Position) { return std::pair{dice.row(Dim), dice.row(Dim)}; });
  }

  /// Attention of some queries over the whole head, as the cache computes it.
  std::vector<float> attend(const std::vector<float>& rows, bool in_cache = false) {
    Workspace::Frame frame(workspace);
    const std::size_t tokens = rows.size() / (Group * Dim);
    const auto memory = frame.take(rows.size());
    const attention::Settings settings{.shape = &model, .in_cache = in_cache};
    auto queries = attention::load_queries(settings, {rows.data(), tokens, Group * Dim}, 0, memory);
    const std::vector<std::int32_t> shifts(tokens, static_cast<std::int32_t>(head.size()) - next);
    if (in_cache) queries.shifts = shifts;
    const attention::HeadReader reader(head, settings, frame);
    const std::size_t width = attention::SumLayout::width(head.values());
    auto state = attention::Partial::empty_in(frame.take(attention::Partial::floats(queries.rows(), width)),
                                              queries.rows(), width);
    auto prepared = reader.prepare(queries, frame);
    attention::attend(reader, 0, reader.rows(), prepared, reader.rows(), state);
    state.finish_sums(head.values());
    std::vector<float> out(queries.rows() * Dim);
    for (std::size_t row = 0; row < queries.rows(); ++row)
      state.finish(row, std::span<float>(out).subspan(row * Dim, Dim));
    return out;
  }
  /// The same in double precision, over given rows.
  std::vector<double> reference(const std::vector<float>& rows, const std::vector<float>& k,
                                const std::vector<float>& v, bool in_cache = false) const {
    std::vector<double> out;
    for (std::size_t q = 0; q < rows.size() / Dim; ++q) {
      std::vector<float> query(rows.begin() + std::ptrdiff_t(q * Dim), rows.begin() + std::ptrdiff_t((q + 1) * Dim));
      std::vector<double> weights(head.size()), sums(Dim, 0.0);
      double total = 0;
      for (std::size_t slot = 0; slot < head.size(); ++slot) {
        std::vector<float> turned = query;
        if (in_cache) {
          const double shift = double(head.slots().position(slot)) - double(slot) + double(head.size()) - double(next);
          rotate(turned, model.rotary, shift);
        }
        double dot = 0;
        for (std::size_t c = 0; c < Dim; ++c) dot += double(turned[c]) * k[slot * Dim + c];
        weights[slot] = std::exp(dot * model.logit_scale());
        total += weights[slot];
      }
      for (std::size_t slot = 0; slot < head.size(); ++slot)
        for (std::size_t c = 0; c < Dim; ++c) sums[c] += weights[slot] * v[slot * Dim + c];
      for (const double sum : sums) out.push_back(sum / total);
    }
    return out;
  }
  std::vector<float> decoded(const RowStore& store) const {
    std::vector<float> rows(head.size() * Dim);
    store.gather(0, {rows.data(), head.size(), Dim});
    return rows;
  }
  /// Largest difference between attention and the reference over what the codecs decode.
  double distance(std::size_t tokens, bool in_cache = false) {
    std::vector<float> queries;
    for (std::size_t i = 0; i < tokens * Group; ++i)
      for (const float x : dice.row(Dim)) queries.push_back(x);
    const auto out = attend(queries, in_cache);
    const auto expected = reference(queries, decoded(head.keys()), decoded(head.values()), in_cache);
    double worst = 0;
    for (std::size_t i = 0; i < out.size(); ++i) worst = std::max(worst, std::fabs(out[i] - expected[i]));
    return worst;
  }
  void drop(std::size_t slot) {
    std::vector<std::uint8_t> flags(head.size(), 1);
    flags[slot] = 0;
    head.keep(flags, false, workspace);
    for (auto* rows : {&keys, &values})
      rows->erase(rows->begin() + std::ptrdiff_t(slot * Dim), rows->begin() + std::ptrdiff_t((slot + 1) * Dim));
  }
};

std::shared_ptr<HadamardCodec> hadamard(Role role, unsigned bits) {
  const GroupQuant format{.bits = bits, .axis = role == Role::key ? Axis::channel : Axis::token, .group = 32};
  return std::make_shared<HadamardCodec>(make_codec(format, role, Dim));
}
Stream sealed(std::shared_ptr<const Codec> codec, std::size_t recent = 10, std::size_t batch = 32) {
  return {.format = Format(std::move(codec)), .sinks = 2, .recent = recent, .batch = batch};
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error += std::pow(double(a[i]) - b[i], 2);
    norm += std::pow(double(b[i]), 2);
  }
  return std::sqrt(error / norm);
}

}  // namespace

TEST_CASE("A rotated codec turns queries and sums instead of rows, and attention equals the reference") {
  Subject subject(sealed(hadamard(Role::key, 4)), sealed(hadamard(Role::value, 8), 20, 1));
  subject.append_random(1000);
  subject.head.seal(true, subject.workspace);
  for (std::size_t step = 0; step < 100; ++step) {
    subject.append_random(1);
    if (step % 3 == 0) subject.drop(40 + step);
    subject.head.seal(false, subject.workspace);
  }
  REQUIRE(subject.head.keys().sealed_rows() > 900);
  REQUIRE_FALSE(subject.head.in_step());
  CHECK(subject.distance(5) < 2e-6);
  CHECK(subject.distance(5, true) < 2e-5);
}

TEST_CASE("Queries are prepared and sums finished once per call of attention, however many blocks there are") {
  const auto key = hadamard(Role::key, 4), value = hadamard(Role::value, 4);
  Subject subject(sealed(key), sealed(value, 10, 32));
  subject.append_random(2000);
  subject.head.seal(true, subject.workspace);
  REQUIRE(subject.head.keys().segments().size() > 8);
  for (const std::size_t tokens : {1u, 7u}) {
    key->prepared_calls = value->finished_calls = 0;
    subject.attend(std::vector<float>(tokens * Group * Dim, 0.25f));
    CHECK(key->prepared_calls == 1);
    CHECK(value->finished_calls == 1);
  }
  SECTION("at in-cache positions once for each distance between text and cache") {
    for (const std::size_t slot : {100u, 500u, 501u, 1500u}) subject.drop(slot);  // four distances besides 0
    key->prepared_calls = 0;
    subject.attend(std::vector<float>(Group * Dim, 0.25f), true);
    CHECK(key->prepared_calls >= 4);
    CHECK(key->prepared_calls <= 5);
  }
}

TEST_CASE("A rotated codec's error on rows with outliers is a fraction of the plain codec's") {
  const auto outliers = [&](Subject& subject) {
    subject.append(512, [&](Position) {
      auto key = subject.dice.row(Dim), value = subject.dice.row(Dim);
      value[7] *= 40;
      return std::pair{key, value};
    });
    subject.head.seal(true, subject.workspace);
    return relative_error(subject.decoded(subject.head.values()), subject.values);
  };
  Subject plain({}, sealed(make_codec(GroupQuant{.axis = Axis::token, .group = 32}, Role::value, Dim)));
  Subject turned({}, sealed(hadamard(Role::value, 4)));
  CHECK(outliers(turned) < outliers(plain));
}

TEST_CASE("A codec of keys before their rotation is told positions, keeps them and attends as the reference") {
  const Rotary rotary = shape().rotary;
  const auto inner = make_codec(GroupQuant{.bits = 4, .axis = Axis::channel, .group = 32}, Role::key, Dim);
  // Before rotation every channel has its own mean, and little besides.
  const auto key_at = [&](Subject& subject, Position position) {
    auto key = subject.dice.row(Dim);
    for (std::size_t c = 0; c < Dim; ++c) key[c] = 0.1f * key[c] + (c % 2 ? 1.0f : -2.0f);
    rotate(key, rotary, double(position));
    return key;
  };
  const auto fill = [&](Subject& subject) {
    const auto row = [&](Position position) {
      auto key = key_at(subject, position);
      return std::pair{key, subject.dice.row(Dim)};
    };
    subject.append(700, row);
    subject.head.seal(true, subject.workspace);
    for (std::size_t step = 0; step < 90; ++step) {
      subject.append(1, row);
      if (step % 2 == 0) subject.drop(30 + 5 * step);  // so that rows are sealed away from their slots' order
      subject.head.seal(false, subject.workspace);
    }
    return relative_error(subject.decoded(subject.head.keys()), subject.keys);
  };
  Subject before(sealed(std::make_shared<PreRotaryCodec>(inner, rotary)), {}), after(sealed(inner), {});
  const double error = fill(before);
  CHECK(error < 0.02);
  CHECK(error * 4 < fill(after));
  CHECK(before.distance(4) < 1e-5);
  CHECK(before.distance(4, true) < 1e-4);
}

TEST_CASE("A codec that fits itself to the rows sealed first serves its head for good, and attends as the reference") {
  constexpr std::size_t Rank = 8;
  Subject subject(sealed(std::make_shared<LowRankCodec>(Role::key, Dim, Rank)),
                  sealed(std::make_shared<LowRankCodec>(Role::value, Dim, Rank), 30, 1));
  // Rows of eight directions, which the codec is not told.
  std::vector<std::vector<float>> directions;
  for (std::size_t k = 0; k < Rank; ++k) directions.push_back(subject.dice.row(Dim));
  const auto mixed = [&] {
    std::vector<float> row(Dim, 0.0f);
    for (const auto& direction : directions) {
      const float factor = subject.dice.row(1)[0];
      for (std::size_t c = 0; c < Dim; ++c) row[c] += factor * direction[c];
    }
    return row;
  };
  const auto row = [&](Position) {
    auto key = mixed();
    return std::pair{key, mixed()};
  };
  subject.append(300, row);
  subject.head.seal(true, subject.workspace);
  REQUIRE(subject.head.keys().transforming().size() == 1);
  const Codec* fitted = subject.head.keys().transforming()[0].get();
  const HeadStore fork = subject.head;
  subject.append(400, row);
  subject.head.seal(true, subject.workspace);
  CHECK(subject.head.keys().transforming().size() == 1);
  for (const Segment& segment : subject.head.keys().segments())
    if (segment.sealed) CHECK(&segment.block->codec() == fitted);
  CHECK(relative_error(subject.decoded(subject.head.keys()), subject.keys) < 1e-5);
  CHECK(relative_error(subject.decoded(subject.head.values()), subject.values) < 1e-5);
  CHECK(subject.distance(6) < 2e-5);
  CHECK(fork.keys().transforming()[0].get() == fitted);
  SECTION("the bytes of its basis are counted") {
    const Stats stats = subject.head.stats(subject.model);
    CHECK(stats.metadata >= 2 * Rank * Dim * sizeof(float));
  }
}

TEST_CASE("Two heads of one format fit codecs of their own") {
  const auto codec = std::make_shared<LowRankCodec>(Role::key, Dim, 8);
  Subject a(sealed(codec), {}), b(sealed(codec), {});
  for (Subject* subject : {&a, &b}) {
    subject->dice = support::Dice(subject == &a ? 1 : 2);
    subject->append_random(100);
    subject->head.seal(true, subject->workspace);
  }
  CHECK(a.head.keys().transforming()[0] != b.head.keys().transforming()[0]);
  CHECK(codec->own_bytes() == 0);
  CHECK(a.distance(2) < 1e-5);
}

TEST_CASE("A codec's limit is the largest element that reads back finite") {
  for (const auto role : {Role::key, Role::value})
    for (const Format& format :
         std::vector<Format>{Dense{Scalar::f32}, Dense{Scalar::f16}, Dense{Scalar::bf16},
                             GroupQuant{.bits = 2, .axis = Axis::token, .group = 32},
                             GroupQuant{.bits = 8, .axis = Axis::channel, .group = 32},
                             GroupQuant{.bits = 4, .axis = Axis::token, .group = 32, .metadata = Scalar::f32},
                             GroupQuant{.bits = 4, .axis = Axis::token, .group = 32, .fit = Fit::half_quadratic},
                             GroupQuant{.bits = 2, .axis = Axis::token, .group = 32, .fit = Fit::whole_zero},
                             GgmlBlocks{GgmlType::q4_0}, GgmlBlocks{GgmlType::q4_1}, GgmlBlocks{GgmlType::q5_0},
                             GgmlBlocks{GgmlType::q5_1}, GgmlBlocks{GgmlType::q8_0}, GgmlBlocks{GgmlType::iq4_nl}}) {
      const auto codec = make_codec(format, role, Dim);
      const float limit = codec->limit();
      INFO(codec->name() << ", limit " << limit);
      CHECK(std::isfinite(limit));
      std::vector<std::byte> block(codec->block_bytes(32));
      for (const int pattern : {0, 1, 2, 3}) {
        std::vector<float> rows(32 * Dim), back(32 * Dim);
        for (std::size_t i = 0; i < rows.size(); ++i)
          rows[i] = pattern == 0 ? limit : pattern == 1 ? -limit : (i % 3 == 0 ? -limit : pattern == 2 ? limit : 0.5f);
        codec->encode({rows.data(), 32, Dim}, block.data(), 32, 0);
        codec->decode(block.data(), 32, 0, {back.data(), 32, Dim});
        bool finite = true;
        for (const float x : back) finite &= std::isfinite(x);
        INFO("pattern " << pattern);
        CHECK(finite);
      }
    }
}

TEST_CASE("A rotated codec serves rows that were moved together after it sealed its first") {
  Subject subject(sealed(hadamard(Role::key, 8)), sealed(hadamard(Role::value, 8), 10, 32));
  subject.append_random(100);
  subject.head.seal(true, subject.workspace);
  subject.head.truncate(0, 100);
  subject.keys.clear();
  subject.values.clear();
  subject.next = 0;
  subject.append_random(200);
  std::vector<std::uint8_t> flags(200, 1);
  flags[17] = 0;
  subject.head.keep(flags, true, subject.workspace);  // nothing is sealed: all rows move
  subject.head.seal(true, subject.workspace);
  REQUIRE(subject.head.keys().sealed_rows() > 100);
  CHECK(subject.distance(3) < 2e-5);
}

TEST_CASE("A codec in a basis of its own that does not read it back is refused, not believed") {
  struct Forgetful final : Codec {
    std::size_t prepared, summed;
    Forgetful(std::size_t prepared_floats, std::size_t sum_floats) : prepared(prepared_floats), summed(sum_floats) {}
    std::string name() const override { return "forgetful"; }
    std::size_t dim() const override { return Dim; }
    std::size_t block_bytes(std::size_t capacity) const override { return capacity; }
    void encode(ConstRows, std::byte*, std::size_t, std::size_t) const override {}
    void decode(const std::byte*, std::size_t, std::size_t, Rows<float>) const override {}
    std::size_t prepared_dim() const override { return prepared; }
    std::size_t sum_dim() const override { return summed; }
  };
  const auto message = [](auto call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message([] { Forgetful(Dim, 0).scores(nullptr, 0, 0, 0, {}, {}); }) ==
        "Codec forgetful: prepared_dim() is not 0, so scores() must be overridden");
  CHECK(message([] { Forgetful(0, Dim).accumulate(nullptr, 0, 0, 0, {}, {}); }) ==
        "Codec forgetful: sum_dim() is not 0, so accumulate() must be overridden");
}
