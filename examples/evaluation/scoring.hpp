#pragma once
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace evaluation {

/// The index of the largest element, the first of several.
std::size_t argmax(std::span<const float> values);
/// log(sum(exp(values)))
double log_sum_exp(std::span<const float> values);

/// How one prediction compares.
struct Score {
  double nll = 0;         ///< -log p(target)
  double kl = 0;          ///< KL(reference || prediction), natural logarithm
  bool same_top = false;  ///< both would choose the same token
};

/// A prediction that others are scored against.
class ReferencePrediction {
 public:
  /// Sets the logits of the reference. They are not copied: their memory must outlive the scoring.
  void set(std::span<const float> logits);
  /// Scores `logits` for the token that really comes. A pure read.
  Score score(std::span<const float> logits, std::size_t target) const;

 private:
  std::span<const float> logits_;
  std::vector<float> probabilities_;
  double log_sum_exp_ = 0;
  std::size_t top_ = 0;
};

/// What a contestant has shown so far, summed.
struct Tally {
  std::vector<double> window_nll;  ///< mean -log p(target) of each window
  double kl = 0;
  std::size_t predictions = 0, same_top = 0;
  std::size_t samples = 0, exact = 0;
  std::size_t prompts = 0;  ///< over which the cache was measured, at the prompt's end
  double bytes = 0, dense_bytes = 0, kept = 0;
  std::optional<double> attend_us, token_ms;  ///< none: not timed

  double mean_nll() const;
};

/// exp(mean over windows of (nll - reference nll))
double perplexity_ratio(const Tally& tally, const Tally& reference);

}  // namespace evaluation
