#include "catch_shim.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kvc/kernels/dispatch.hpp"
#include "support/oracle.hpp"

using namespace oracle;

namespace {

constexpr std::size_t Counts[] = {1, 7, 8, 15, 16, 17, 31, 32, 33, 100, 257};

/// Relative bound on exp of a float: 2e-7 for the function, plus the rounding of its argument, which is a difference of
/// numbers of that magnitude.
double exp_bound(double argument) { return 2e-7 + 2 * Unit * std::fabs(argument); }

/// Running state of one row.
struct State {
  float maximum = -Infinity, sum = 0, correction = NotANumber;
  void update(std::vector<float>& scores, const std::vector<float>* bias = nullptr) {
    active().softmax_update(scores.data(), scores.size(), 1, scores.size(), bias ? bias->data() : nullptr, &maximum,
                            &sum, &correction);
  }
};

}  // namespace

TEST_CASE("exp is accurate to 2e-7 from -87 to 0, and exact at 0 and minus infinity") {
  std::vector<float> x;
  for (int i = 0; i <= 87 * 1000; ++i) x.push_back(-static_cast<float>(i) / 1000);
  x.push_back(-Infinity);
  at_every_isa([&](kvc::Isa isa) {
    std::vector<float> y(x.size());
    active().exponentials(x.data(), nullptr, x.size(), y.data());
    Worst worst;
    for (std::size_t i = 0; i + 1 < x.size(); ++i)
      worst.add(y[i], std::exp(double(x[i])), 2e-7 * std::exp(double(x[i])));
    INFO(kvc::to_string(isa));
    CHECK(worst.value() <= 1);
    CHECK(y.front() == 1.0f);
    CHECK(y.back() == 0.0f);
  });
}

TEST_CASE("softmax_update turns scores into exp(score - maximum) and sums them") {
  for (std::size_t count : Counts) {
    const std::vector<float> scores = normal_floats(count, 1), bias = normal_floats(count, 2);
    for (bool biased : {false, true})
      at_every_isa([&](kvc::Isa isa) {
        std::vector<float> terms = scores;
        State state;
        state.update(terms, biased ? &bias : nullptr);
        std::vector<double> logits;
        double maximum = -HUGE_VAL, sum = 0;
        for (std::size_t i = 0; i < count; ++i) logits.push_back(biased ? scores[i] + bias[i] : scores[i]);
        for (double logit : logits) maximum = std::fmax(maximum, logit);
        Worst worst;
        for (std::size_t i = 0; i < count; ++i) {
          const double term = std::exp(logits[i] - maximum);
          sum += term;
          worst.add(terms[i], term, exp_bound(logits[i] - maximum) * term);
        }
        INFO(kvc::to_string(isa) << ", count " << count);
        CHECK(worst.value() <= 1);
        CHECK(state.maximum == static_cast<float>(maximum));
        CHECK(state.correction == 0.0f);
        // Terms within 1e-6 each, and `count` additions.
        CHECK(std::fabs(state.sum - sum) <= (1e-6 + double(count) * Unit) * sum);
      });
  }
}

TEST_CASE("scores in two pieces give the softmax of the whole") {
  for (float offset : {-3.0f, 0.0f, 3.0f}) {  // the second piece lowers, keeps or raises the maximum
    const std::vector<float> first = normal_floats(50, 1), second = normal_floats(33, 2, offset);
    double maximum = -HUGE_VAL, sum = 0;
    for (const auto* piece : {&first, &second})
      for (float x : *piece) maximum = std::fmax(maximum, double(x));
    for (const auto* piece : {&first, &second})
      for (float x : *piece) sum += std::exp(x - maximum);
    at_every_isa([&](kvc::Isa isa) {
      State state;
      std::vector<float> terms = first, more = second;
      state.update(terms);
      const float before = state.maximum;
      state.update(more);
      INFO(kvc::to_string(isa) << ", offset " << offset);
      CHECK(state.maximum == static_cast<float>(maximum));
      CHECK(std::fabs(state.sum - sum) <= (2e-6 + 90 * Unit) * sum);
      CHECK(std::fabs(state.correction - std::exp(double(before) - maximum)) <= 1e-6);
    });
  }
}

TEST_CASE("rows are independent") {
  const std::vector<float> scores = normal_floats(9 * 40, 1);
  at_every_isa([&](kvc::Isa isa) {
    std::vector<float> together = scores, maxima(9, -Infinity), sums(9), corrections(9);
    active().softmax_update(together.data(), 40, 9, 37, nullptr, maxima.data(), sums.data(), corrections.data());
    for (std::size_t r = 0; r < 9; ++r) {
      std::vector<float> row(scores.begin() + std::ptrdiff_t(r * 40), scores.begin() + std::ptrdiff_t(r * 40 + 37));
      State state;
      state.update(row);
      INFO(kvc::to_string(isa) << ", row " << r);
      CHECK(state.sum == sums[r]);
      CHECK(row == std::vector<float>(together.begin() + std::ptrdiff_t(r * 40),
                                      together.begin() + std::ptrdiff_t(r * 40 + 37)));
      CHECK(together[r * 40 + 37] == scores[r * 40 + 37]);  // past the count: untouched
    }
  });
}

TEST_CASE("masked scores have probability 0 and do not count") {
  at_every_isa([&](kvc::Isa isa) {
    std::vector<float> scores = {1, 2, 3, 4, 5}, bias = {0, -Infinity, 0, -Infinity, -Infinity};
    State state;
    state.update(scores, &bias);
    INFO(kvc::to_string(isa));
    CHECK(state.maximum == 3.0f);
    CHECK(scores[1] == 0.0f);
    CHECK(scores[2] == 1.0f);
    CHECK(std::fabs(state.sum - (1 + std::exp(-2.0))) < 1e-6);
  });
}

TEST_CASE("a row that has seen only minus infinity has terms 0, correction 1 and joins later") {
  for (std::size_t count : Counts)
    at_every_isa([&](kvc::Isa isa) {
      std::vector<float> scores(count, -Infinity), finite = {0.5f, 0.5f};
      State state;
      state.update(scores);
      INFO(kvc::to_string(isa) << ", count " << count);
      CHECK(scores == std::vector<float>(count, 0.0f));
      CHECK(state.maximum == -Infinity);
      CHECK(state.sum == 0.0f);
      CHECK(state.correction == 1.0f);
      state.update(finite);
      CHECK(state.sum == 2.0f);
      CHECK(state.correction == 0.0f);
    });
}

TEST_CASE("a masked piece after finite ones changes nothing") {
  at_every_isa([&](kvc::Isa isa) {
    std::vector<float> finite = {0.5f, -1.0f}, masked(20, -Infinity);
    State state;
    state.update(finite);
    const float sum = state.sum;
    state.update(masked);
    INFO(kvc::to_string(isa));
    CHECK(state.sum == sum);
    CHECK(state.maximum == 0.5f);
    CHECK(state.correction == 1.0f);
    CHECK(masked == std::vector<float>(20, 0.0f));
  });
}

TEST_CASE("a NaN score makes its row's sum NaN") {
  for (std::size_t at : {0u, 5u, 19u})
    at_every_isa([&](kvc::Isa isa) {
      std::vector<float> scores = normal_floats(20, 1);
      scores[at] = NotANumber;
      State state;
      state.update(scores);
      INFO(kvc::to_string(isa) << ", position " << at);
      CHECK(std::isnan(state.sum));
      CHECK(std::isnan(scores[at]));
    });
}

TEST_CASE("exponentials are exp(score + bias), and nothing beyond is written") {
  for (std::size_t count : Counts) {
    const std::vector<float> scores = normal_floats(count, 1), bias = normal_floats(count, 2);
    for (bool biased : {false, true})
      at_every_isa([&](kvc::Isa isa) {
        std::vector<float> target(count + 1, -5.0f);
        active().exponentials(scores.data(), biased ? bias.data() : nullptr, count, target.data());
        Worst worst;
        for (std::size_t i = 0; i < count; ++i) {
          const double expected = std::exp(double(biased ? scores[i] + bias[i] : scores[i]));
          worst.add(target[i], expected, exp_bound(10) * expected);
        }
        INFO(kvc::to_string(isa) << ", count " << count);
        CHECK(worst.value() <= 1);
        CHECK(target[count] == -5.0f);
      });
  }
}

TEST_CASE("exponentials of minus infinity are zeros") {
  at_every_isa([&](kvc::Isa isa) {
    const std::vector<float> scores(20, -Infinity);
    std::vector<float> target(20, NotANumber);
    active().exponentials(scores.data(), nullptr, 20, target.data());
    INFO(kvc::to_string(isa));
    CHECK(target == std::vector<float>(20, 0.0f));
  });
}

TEST_CASE("column_maxima raises each maximum to the largest product of a row's factor and element, and nothing beyond") {
  constexpr std::size_t Rows = 5;
  for (std::size_t count : Counts)
    at_every_isa([&](kvc::Isa isa) {
      const std::size_t stride = count + 3;
      const std::vector<float> x = normal_floats(Rows * stride, 1), factors = normal_floats(Rows, 2);
      std::vector<float> maxima = normal_floats(stride, 3, 0.5f), expected = maxima;
      for (std::size_t r = 0; r < Rows; ++r)
        for (std::size_t i = 0; i < count; ++i) expected[i] = std::max(expected[i], factors[r] * x[r * stride + i]);
      active().column_maxima(x.data(), stride, Rows, count, factors.data(), maxima.data());
      INFO(kvc::to_string(isa) << ", count " << count);
      CHECK(maxima == expected);
    });
}

TEST_CASE("scale_rows multiplies each row by its factor and nothing beyond") {
  for (std::size_t count : Counts)
    at_every_isa([&](kvc::Isa isa) {
      const std::vector<float> x = normal_floats(3 * (count + 2), 1), factors = {2.0f, -0.3f, 0.0f};
      std::vector<float> scaled = x;
      active().scale_rows(scaled.data(), count + 2, 3, count, factors.data());
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const bool inside = i % (count + 2) < count;
        wrong += scaled[i] != (inside ? x[i] * factors[i / (count + 2)] : x[i]);
      }
      INFO(kvc::to_string(isa) << ", count " << count);
      CHECK(wrong == 0);
    });
}

TEST_CASE("softcap is cap * tanh(score / cap), accurate for small and large scores") {
  std::vector<float> scores;
  for (int i = -4000; i <= 4000; ++i) scores.push_back(static_cast<float>(i) * 0.1f);
  for (float x : {1e-6f, -1e-3f, 1e4f, -1e30f, Infinity, -Infinity, NotANumber}) scores.push_back(x);
  at_every_isa([&](kvc::Isa isa) {
    std::vector<float> capped = scores;
    active().softcap(capped.data(), capped.size(), 50.0f);
    Worst worst;
    for (std::size_t i = 0; i < scores.size(); ++i) {
      const double expected = 50.0 * std::tanh(double(scores[i]) / 50.0);
      worst.add(capped[i], expected, 1e-6 * std::fabs(expected) + 1e-30);
    }
    INFO(kvc::to_string(isa));
    CHECK(worst.value() <= 1);
  });
}

TEST_CASE("all_within finds a NaN, an infinity or a magnitude that is too large at any position") {
  for (std::size_t count : Counts)
    at_every_isa([&](kvc::Isa isa) {
      std::vector<float> x = normal_floats(count, 1);
      constexpr float Most = 65504;
      x[count / 2] = -Most;
      INFO(kvc::to_string(isa) << ", count " << count);
      CHECK(active().all_within(x.data(), count, Most));
      std::size_t missed = 0;
      for (float bad : {NotANumber, -NotANumber, Infinity, -Infinity, 65504.01f, -70000.0f})
        for (std::size_t i = 0; i < count; ++i) {
          const float kept = x[i];
          x[i] = bad;
          missed += active().all_within(x.data(), count, Most);
          x[i] = kept;
        }
      CHECK(missed == 0);
    });
}

TEST_CASE("an empty range is finite") {
  at_every_isa([&](kvc::Isa isa) {
    INFO(kvc::to_string(isa));
    CHECK(active().all_within(nullptr, 0, 1.0f));
  });
}
