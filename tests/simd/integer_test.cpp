#include "catch_shim.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kvc/kernels/dispatch.hpp"
#include "support/oracle.hpp"

using namespace oracle;
using kvc::Arithmetic;

namespace {

constexpr std::size_t Dim = 128, Tokens = 256;

enum class Data { normal, outliers };

/// One block as keys (lane = token) or values (lane = channel) from a normal distribution; with outliers, four channels are
/// eight times as wide and stand off by 12.
struct Sample {
  bool keys;
  PackedLayout layout;
  std::vector<float> source;  // [p][lane]
  std::vector<unsigned char> bytes;

  Sample(unsigned bits, bool is_keys, GroupsAlong along, Data data)
      : keys(is_keys),
        layout{bits, along, 32, is_keys ? Tokens : Dim, is_keys ? Dim : Tokens, Scalar::f16},
        source(normal_floats(Tokens * Dim, 11)),
        bytes(layout.bytes()) {
    for (std::size_t p = 0; p < layout.depth; ++p)
      for (std::size_t lane = 0; lane < layout.lanes; ++lane) {
        const std::size_t channel = keys ? p : lane;
        float& x = source[p * layout.lanes + lane];
        if (data == Data::outliers && channel % 32 == 11) x = 8 * x + (channel % 64 == 11 ? 12.0f : -12.0f);
      }
    active_packed().encode(layout, bytes.data(), {0, layout.lanes, 0, layout.depth}, {source.data(), layout.lanes, 1});
  }
  float original(std::size_t p, std::size_t lane) const { return source[p * layout.lanes + lane]; }
  double decoded(std::size_t p, std::size_t lane) const {
    return packed_element(layout, bytes.data(), p, lane).value();
  }
};

/// Queries, or weights like those of a softmax whose logits deviate by 1.5.
std::vector<float> coefficients_of(const Sample& sample, std::size_t rows) {
  std::vector<float> c = normal_floats(rows * sample.layout.depth, 12);
  if (!sample.keys)
    for (float& x : c) x = std::exp(1.5f * x - 4.0f);
  return c;
}

/// RMS of (product - exact product of decoded elements) over RMS of (exact product of decoded - of original elements).
double relative_error(const Sample& sample, Arithmetic arithmetic, std::size_t rows) {
  const std::vector<float> c = coefficients_of(sample, rows);
  const std::size_t lanes = sample.layout.lanes, steps = sample.layout.depth;
  std::vector<float> results(rows * lanes);
  active_packed().product(sample.layout, sample.bytes.data(), {0, lanes, 0, steps},
                          {c.data(), rows, steps, arithmetic, !sample.keys}, {results.data(), lanes, false});
  double arithmetic_error = 0, format_error = 0;
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      double decoded = 0, original = 0;
      for (std::size_t p = 0; p < steps; ++p) {
        decoded += double(c[r * steps + p]) * sample.decoded(p, lane);
        original += double(c[r * steps + p]) * double(sample.original(p, lane));
      }
      arithmetic_error += std::pow(results[r * lanes + lane] - decoded, 2);
      format_error += std::pow(decoded - original, 2);
    }
  return std::sqrt(arithmetic_error / format_error);
}

}  // namespace

TEST_CASE("Accurate arithmetic adds at most 5 % of the format's own error, for keys and values of every format") {
  for (unsigned bits : {2u, 3u, 4u, 8u})
    for (bool keys : {true, false})
      for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth})
        for (Data data : {Data::normal, Data::outliers}) {
          const Sample sample(bits, keys, along, data);
          at_every_isa([&](kvc::Isa isa) {
            const double error = relative_error(sample, Arithmetic::accurate, 5);
            INFO(kvc::to_string(isa) << ": " << bits << " bits, " << (keys ? "keys" : "values") << " in groups along "
                                     << (along == GroupsAlong::lanes ? "lanes" : "p")
                                     << (data == Data::outliers ? ", outliers" : "") << ": " << 100 * error << " %");
            CHECK(error <= 0.05);
          });
        }
}

TEST_CASE("Exact arithmetic adds less than a thousandth of the format's own error at every level") {
  for (unsigned bits : {2u, 3u, 4u, 8u})
    at_every_isa([&](kvc::Isa isa) {
      INFO(kvc::to_string(isa) << ", " << bits << " bits");
      CHECK(relative_error(Sample(bits, true, GroupsAlong::lanes, Data::outliers), Arithmetic::exact, 3) < 1e-3);
    });
}

TEST_CASE("Accurate arithmetic quantizes coefficients where the level multiplies integers, and only there") {
  for (unsigned bits : {2u, 3u, 4u, 8u})
    for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth}) {
      const Sample sample(bits, true, along, Data::normal);
      const std::vector<float> c = coefficients_of(sample, 1);
      at_every_isa([&](kvc::Isa isa) {
        std::vector<float> accurate(Tokens), exact(Tokens);
        for (auto [arithmetic, target] :
             {std::pair{Arithmetic::accurate, &accurate}, std::pair{Arithmetic::exact, &exact}})
          active_packed().product(sample.layout, sample.bytes.data(), {0, Tokens, 0, Dim},
                                  {c.data(), 1, Dim, arithmetic}, {target->data(), Tokens, false});
        INFO(kvc::to_string(isa) << ": " << bits << " bits");
        CHECK((accurate != exact) == active_packed().multiplies_integers);
      });
    }
}

TEST_CASE("AVX2, AVX-512 and the dot products of Arm multiply integers") {
  for (kvc::Isa isa : {kvc::Isa::avx2, kvc::Isa::avx512, kvc::Isa::avx512vnni, kvc::Isa::neondotprod})
    if (kvc::is_available(isa)) CHECK(packed_table(isa).multiplies_integers);
  CHECK_FALSE(packed_table(kvc::Isa::portable).multiplies_integers);
}

TEST_CASE("Fast arithmetic adds the share of the format's own error that its documentation says, at every width") {
  const auto documented = [](unsigned bits) { return bits == 8 ? 0.05 : bits == 4 ? 0.4 : 0.2; };
  for (unsigned bits : {2u, 3u, 4u, 8u})
    for (bool keys : {true, false})
      for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth})
        at_every_isa([&](kvc::Isa isa) {
          const double error = relative_error(Sample(bits, keys, along, Data::outliers), Arithmetic::fast, 3);
          INFO(kvc::to_string(isa) << ": " << bits << " bits, " << (keys ? "keys" : "values") << ": " << 100 * error
                                   << " %");
          CHECK(error <= documented(bits));
        });
}

namespace {

/// The product in double precision over decoded elements, and how far each level's accurate result is from it, relative to
/// the largest result. Quantized coefficients have steps of 1/32500 of their largest, which meet codes of a few units.
void check_accurate(const PackedLayout& layout, const Area& area, std::size_t rows, bool weights, bool add) {
  const std::vector<float> source = normal_floats(layout.depth * layout.lanes, 21, 0.5f);
  std::vector<unsigned char> bytes(layout.bytes());
  active_packed().encode(layout, bytes.data(), {0, layout.lanes, 0, layout.depth}, {source.data(), layout.lanes, 1});
  std::vector<float> c = normal_floats(rows * area.depth_count, 22);
  if (weights)
    for (float& x : c) x = std::fabs(x);
  std::vector<double> expected(rows * area.lanes, add ? 1.0 : 0.0);
  double magnitude = 0;
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t lane = 0; lane < area.lanes; ++lane) {
      double sum = 0;
      for (std::size_t p = 0; p < area.depth_count; ++p) {
        const double term = double(c[r * area.depth_count + p]) *
                            packed_element(layout, bytes.data(), area.depth_begin + p, area.lane_begin + lane).value();
        expected[r * area.lanes + lane] += term;
        sum += std::fabs(term);
      }
      magnitude = std::max(magnitude, sum);
    }
  at_every_isa([&](kvc::Isa isa) {
    std::vector<float> results(rows * area.lanes, add ? 1.0f : NotANumber);
    active_packed().product(layout, bytes.data(), area,
                            {c.data(), rows, area.depth_count, Arithmetic::accurate, weights},
                            {results.data(), area.lanes, add});
    double worst = 0;
    for (std::size_t i = 0; i < results.size(); ++i) {
      const double distance = std::fabs(results[i] - expected[i]);
      worst = std::isnan(distance) ? HUGE_VAL : std::max(worst, distance);
    }
    INFO(kvc::to_string(isa) << ": " << layout.bits << " bits, groups of " << layout.group << " along "
                             << (layout.along == GroupsAlong::lanes ? "lanes" : "p") << ", rows " << rows << ", lanes "
                             << area.lanes << ", p " << area.depth_count);
    // One part of 8 bits, which 2-bit codes may meet, errs by half a step of 1/255 of the largest weight or 1/127 of the
    // largest query; sums of many roundings stay below 2 %.
    CHECK(worst <= (layout.bits == 2 ? 2e-2 : 1e-3) * (magnitude + 1));
  });
}

}  // namespace

TEST_CASE("Accurate products serve every number of tokens, as keys and as values") {
  for (unsigned bits : {2u, 3u, 4u, 8u})
    for (std::size_t tokens : {1u, 7u, 31u, 32u, 33u, 255u, 256u, 257u, 1000u})
      for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth}) {
        check_accurate({bits, along, 32, tokens, 64, Scalar::f16}, {0, tokens, 0, 64}, 3, false, false);
        check_accurate({bits, along, 32, 64, tokens, Scalar::f16}, {0, 64, 0, tokens}, 3, true, true);
      }
}

TEST_CASE("Accurate products serve every number of rows and every group") {
  for (unsigned bits : {2u, 3u, 4u, 8u})
    for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth}) {
      for (std::size_t rows : {1u, 2u, 4u, 5u, 7u, 8u, 9u, 16u, 17u, 64u})
        check_accurate({bits, along, 32, 96, 72, Scalar::f32}, {0, 96, 0, 72}, rows, rows % 2 == 0, rows % 3 == 0);
      for (std::size_t group : {8u, 16u, 20u, 40u, 64u, 80u, 128u, 160u})
        check_accurate({bits, along, group, 160, 160, Scalar::f16}, {0, 160, 0, 160}, 4, false, false);
      check_accurate({bits, along, 20, 120, 200, Scalar::f16},
                     {along == GroupsAlong::lanes ? 40u : 48u, 41, along == GroupsAlong::lanes ? 32u : 60u, 130}, 3,
                     true, true);
    }
}

TEST_CASE("Sums of the largest codes times the largest coefficients do not overflow") {
  constexpr std::size_t Lanes = 64, Steps = 512;
  std::vector<float> source(Steps * Lanes);  // nearly every code is the largest one
  for (std::size_t p = 0; p < Steps; ++p)
    for (std::size_t lane = 0; lane < Lanes; ++lane) source[p * Lanes + lane] = (p + lane) % 32 == 0 ? 0.0f : 1.0f;
  for (unsigned bits : {2u, 3u, 4u, 8u})
    for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth}) {
      const PackedLayout layout{bits, along, 32, Lanes, Steps, Scalar::f32};
      std::vector<unsigned char> bytes(layout.bytes());
      active_packed().encode(layout, bytes.data(), {0, Lanes, 0, Steps}, {source.data(), Lanes, 1});
      for (bool weights : {true, false})
        for (float coefficient : {1.0f, -1.0f}) {
          const std::vector<float> c(3 * Steps, coefficient);
          for (Arithmetic arithmetic : {Arithmetic::accurate, Arithmetic::fast})
            at_every_isa([&](kvc::Isa isa) {
              std::vector<float> results(3 * Lanes);
              active_packed().product(layout, bytes.data(), {0, Lanes, 0, Steps},
                                      {c.data(), 3, Steps, arithmetic, weights}, {results.data(), Lanes, false});
              double worst = 0;  // 31 of 32 elements are 1
              for (float x : results) worst = std::max(worst, std::fabs(x - double(coefficient) * Steps * 31 / 32));
              INFO(kvc::to_string(isa) << ": " << bits << " bits, coefficients " << coefficient);
              CHECK(worst < 0.01 * Steps);
            });
        }
    }
}

TEST_CASE("A row's accurate result does not depend on the other rows") {
  const Sample sample(GENERATE(2u, 4u), true, GroupsAlong::lanes, Data::normal);
  std::vector<float> c = normal_floats(13 * Dim, 23);
  for (std::size_t r = 0; r < 13; r += 3) c[r * Dim + 5] = 20;  // rows that need two parts beside rows that do not
  at_every_isa([&](kvc::Isa isa) {
    std::vector<float> whole(13 * Tokens), one(Tokens);
    const Area area{0, Tokens, 0, Dim};
    active_packed().product(sample.layout, sample.bytes.data(), area, {c.data(), 13, Dim, Arithmetic::accurate},
                            {whole.data(), Tokens, false});
    std::size_t different = 0;
    for (std::size_t r = 0; r < 13; ++r) {
      active_packed().product(sample.layout, sample.bytes.data(), area,
                              {c.data() + r * Dim, 1, Dim, Arithmetic::accurate}, {one.data(), Tokens, false});
      for (std::size_t i = 0; i < Tokens; ++i) different += one[i] != whole[r * Tokens + i];
    }
    INFO(kvc::to_string(isa));
    CHECK(different == 0);
  });
}

TEST_CASE("Weights below zero, which attention never has, still give accurate sums") {
  const Sample sample(2, false, GroupsAlong::lanes, Data::normal);
  const std::vector<float> c = normal_floats(Tokens, 24);
  at_every_isa([&](kvc::Isa isa) {
    std::vector<float> results(Dim), exact(Dim);
    const Area area{0, Dim, 0, Tokens};
    for (auto [arithmetic, target] : {std::pair{Arithmetic::accurate, &results}, std::pair{Arithmetic::exact, &exact}})
      active_packed().product(sample.layout, sample.bytes.data(), area, {c.data(), 1, Tokens, arithmetic, true},
                              {target->data(), Dim, false});
    double worst = 0;
    for (std::size_t i = 0; i < Dim; ++i) worst = std::max(worst, std::fabs(double(results[i]) - exact[i]));
    INFO(kvc::to_string(isa));
    CHECK(worst < 0.02);
  });
}
