#include "evaluation/scoring.hpp"

#include <cmath>

#include "catch_shim.hpp"

using namespace evaluation;

namespace {

bool near(double a, double b) {
  return std::abs(a - b) < 1e-6;
}

}  // namespace

TEST_CASE("log-sum-exp does not overflow") {
  const std::vector<float> huge = {1000, 1000};
  CHECK(near(log_sum_exp(huge), 1000 + std::log(2.0)));
}

TEST_CASE("argmax is the first of equals") {
  const std::vector<float> values = {1, 3, 3, 2};
  CHECK(argmax(values) == 1);
}

TEST_CASE("a prediction is scored by the token that comes and by its distance to the reference") {
  // Probabilities 1/2, 1/4, 1/4 against 1/4, 1/2, 1/4.
  const std::vector<float> reference = {std::log(2.0f), 0, 0}, other = {5, 5 + std::log(2.0f), 5};
  ReferencePrediction prediction;
  prediction.set(reference);

  const Score score = prediction.score(other, 1);
  CHECK(near(score.nll, std::log(2.0)));
  CHECK(near(score.kl, 0.25 * std::log(2.0)));  // 1/2 ln 2 + 1/4 ln(1/2) + 0
  CHECK_FALSE(score.same_top);
}

TEST_CASE("a prediction has no distance to itself") {
  const std::vector<float> logits = {0.3f, -2, 7, 1};
  ReferencePrediction prediction;
  prediction.set(logits);
  const Score score = prediction.score(logits, 0);
  CHECK(near(score.kl, 0));
  CHECK(score.same_top);
}

TEST_CASE("a window has means over its predictions, and of the divergence over its first and last quarter") {
  std::vector<Score> scores(9);
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = {double(i), 10.0 * double(i), i < 3};
  const WindowScore window = window_score(scores);
  CHECK(near(window.nll, 4));
  CHECK(near(window.kl, 40));
  CHECK(near(window.top1, 1.0 / 3));
  CHECK(near(window.kl_first.value(), 5));  // of two predictions
  CHECK(near(window.kl_last.value(), 75));
  CHECK_FALSE(window_score(std::span(scores).first(3)).kl_last);
}

TEST_CASE("perplexity ratios are geometric means over windows") {
  Tally full, other;
  full.windows = {{.nll = 1.0}, {.nll = 3.0}};
  other.windows = {{.nll = 1.5}, {.nll = 3.1}};
  CHECK(near(perplexity_ratio(other, full), std::exp(0.3)));
  CHECK(near(other.mean_nll(), 2.3));
}
