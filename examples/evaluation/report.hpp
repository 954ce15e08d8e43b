#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "contestants.hpp"
#include "scoring.hpp"
#include "windows.hpp"

namespace evaluation {

/// What was done, for the reader of the figures.
struct Protocol {
  std::string model, text;
  WindowPlan windows;
  std::size_t samples = 0;
  std::string dense;
  bool prompt_only = false;
  bool fast = false;  ///< weights of 4 and 8 bits were multiplied by activations of 8 bits
  std::size_t threads = 0;
};

/// The figures of one policy at one keep fraction. Without windows there are no likelihoods, without samples no
/// passkey.
struct Result {
  std::string policy;
  double keep = 1;
  double bytes = 0, dense_bytes = 0, kept_fraction = 0;  ///< at the prompt's end, means over the prompts
  std::optional<double> nll, perplexity_ratio, kl, top1;
  std::optional<double> passkey;  ///< share of samples whose whole answer is right
  std::size_t exact = 0, samples = 0;
  std::optional<double> attend_us;  ///< attention of one token in one layer, microseconds on one thread
  std::optional<double> token_ms;   ///< one token through the model, milliseconds on all threads

  double ratio() const { return dense_bytes / bytes; }
  std::optional<double> perplexity() const;
};

Result make_result(const Contestant& contestant, const Tally& tally, const Tally& reference);

/// The table with its legend, for people.
std::string table(const std::vector<Result>& results, const Result& reference, const Protocol& protocol);
/// The same for programs; what was not measured is null.
std::string json(const std::vector<Result>& results, const Result& reference, const Protocol& protocol);

}  // namespace evaluation
