#pragma once
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "footprint.hpp"

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

/// Means over the predictions of a window.
struct WindowScore {
  double nll = 0, kl = 0, top1 = 0;
  std::optional<double> kl_first = {},
                        kl_last = {};  ///< over the first and the last quarter; none: fewer than four predictions
};

WindowScore window_score(std::span<const Score> scores);

/// What became of a question.
struct Answer {
  std::size_t prompt = 0;       ///< number of the prompt that was asked about
  std::optional<double> depth;  ///< where in the prompt the answer stands: 0 is its beginning, 1 its end
  bool found = false;
};

/// What a contestant has shown so far.
struct Tally {
  std::vector<WindowScore> windows;
  std::vector<Answer> answers;
  std::vector<Footprint> footprints;     ///< one per prompt over which the cache was measured
  bool probed = false;  ///< the policy saw the prompt repeated
  std::vector<double> act_seconds;       ///< of the policy at the end of each of these prompts
  std::optional<double> act_peak_bytes;  ///< the most memory that it took on top of what there was; none: not known
  KeptPicture kept;                      ///< of the first of these prompts; empty if everything was kept
  std::optional<double> attend_us, token_ms;  ///< none: not timed

  double mean_nll() const;
  double mean_kl() const;
};

/// exp(mean over windows of (nll - reference nll))
double perplexity_ratio(const Tally& tally, const Tally& reference);

}  // namespace evaluation
