#include "scoring.hpp"

#include <algorithm>
#include <cmath>

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

WindowScore window_score(std::span<const Score> scores) {
  const auto mean_kl = [](std::span<const Score> some) {
    double sum = 0;
    for (const Score& score : some) sum += score.kl;
    return sum / static_cast<double>(some.size());
  };
  WindowScore window;
  for (const Score& score : scores) {
    window.nll += score.nll;
    window.top1 += score.same_top;
  }
  window.nll /= static_cast<double>(scores.size());
  window.top1 /= static_cast<double>(scores.size());
  window.kl = mean_kl(scores);
  if (const std::size_t quarter = scores.size() / 4; quarter != 0) {
    window.kl_first = mean_kl(scores.first(quarter));
    window.kl_last = mean_kl(scores.last(quarter));
  }
  return window;
}

double Tally::mean_nll() const {
  double sum = 0;
  for (const WindowScore& window : windows) sum += window.nll;
  return sum / static_cast<double>(windows.size());
}

double Tally::mean_kl() const {
  double sum = 0;
  for (const WindowScore& window : windows) sum += window.kl;
  return sum / static_cast<double>(windows.size());
}

double perplexity_ratio(const Tally& tally, const Tally& reference) {
  return std::exp(tally.mean_nll() - reference.mean_nll());
}

}  // namespace evaluation
