#include "scoring.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace evaluation {

std::size_t argmax(std::span<const float> values) {
  return static_cast<std::size_t>(std::ranges::max_element(values) - values.begin());
}

double log_sum_exp(std::span<const float> values) {
  const float largest = *std::ranges::max_element(values);
  double sum = 0;
  for (const float value : values) sum += double{std::exp(value - largest)};
  return double{largest} + std::log(sum);
}

void ReferencePrediction::set(std::span<const float> logits) {
  logits_ = logits;
  log_sum_exp_ = log_sum_exp(logits);
  top_ = argmax(logits);
  probabilities_.resize(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i)
    probabilities_[i] = std::exp(static_cast<float>(double{logits[i]} - log_sum_exp_));
}

Score ReferencePrediction::score(std::span<const float> logits, std::size_t target) const {
  const double normalizer = log_sum_exp(logits);
  double divergence = normalizer - log_sum_exp_;
  for (std::size_t i = 0; i < logits.size(); ++i)
    divergence += double{probabilities_[i]} * (double{logits_[i]} - double{logits[i]});
  return {normalizer - double{logits[target]}, divergence, argmax(logits) == top_};
}

double Tally::mean_nll() const {
  return std::accumulate(window_nll.begin(), window_nll.end(), 0.0) / static_cast<double>(window_nll.size());
}

double perplexity_ratio(const Tally& tally, const Tally& reference) {
  return std::exp(tally.mean_nll() - reference.mean_nll());
}

}  // namespace evaluation
