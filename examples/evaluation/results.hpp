#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "contestants.hpp"
#include "footprint.hpp"
#include "scoring.hpp"
#include "statistics.hpp"
#include "windows.hpp"

namespace evaluation {

/// What was done, for the reader of the figures.
struct Protocol {
  std::string model;
  std::vector<std::string> texts;     ///< paths of what windows and samples were made from, or hold
  std::vector<std::string> commands;  ///< that measured this
  std::string machine;
  bool tuning = false;                   ///< the texts are for settling parameters, and their figures for nobody else
  WindowPlan windows;                    ///< without the prompt's length; its count is that of all texts together
  std::size_t samples = 0, needles = 0;  ///< prompts with hidden numbers, and numbers in each
  std::string dense;
  bool prompt_only = false;
  bool fast = false;  ///< weights of 4 and 8 bits were multiplied by activations of 8 bits
  std::size_t threads = 0;
};

/// The model's file without its folder and ending.
std::string model_name(const Protocol& protocol);

/// Questions whose answers lay at one depth.
struct DepthCount {
  double depth = 0;
  std::size_t found = 0, asked = 0;
};

/// The figures of one policy at one keep fraction. Without windows there are no likelihoods, without samples no answers.
struct Result {
  std::string policy;
  double keep = 1;
  Mean bytes, kept_fraction;  ///< at the prompt's end
  double dense_bytes = 0;     ///< of fp16 keys and values of all tokens
  Parts parts;                ///< means, as are the bytes
  std::optional<Mean> nll, perplexity_ratio, kl, kl_first, kl_last, top1;
  std::optional<Mean> passkey;  ///< share of the answers that were found; prompts are the repetitions
  std::size_t found = 0, asked = 0;
  std::vector<DepthCount> by_depth;      ///< ascending
  bool probed = false;                   ///< the policy saw the prompt repeated
  std::optional<double> act_seconds;     ///< of the policy at the prompt's end: the median
  std::optional<double> act_peak_bytes;  ///< more than was held before, at most
  std::optional<double> attend_us;       ///< attention of one token in one layer, microseconds on one thread
  std::optional<double> token_ms;        ///< one token through the model, milliseconds on all threads
  KeptPicture kept;                      ///< of the first prompt; empty if everything was kept

  double ratio() const { return dense_bytes / bytes.value; }
  std::optional<double> perplexity() const;
  /// The policy, with the keep fraction where there is one: "snapkv:keep=0.25" for a person to read.
  std::string label() const;
};

/// All figures over prompts of one length.
struct PromptResults {
  std::size_t prompt = 0;
  std::optional<double> prompt_seconds, repeat_seconds;  ///< of the model alone: medians
  Result full;                                           ///< in f32: what the others are measured against
  std::vector<Result> results;
};

struct Report {
  Protocol protocol;
  std::vector<PromptResults> lengths;
};

/// How many tokens must be decoded until a policy has saved the time that it took at the prompt's end, the repetition of
/// the prompt included, against the policy `full` among the results. None: that is not there, or no token is faster.
std::optional<double> tokens_until_paid(const PromptResults& length, const Result& result);

Result make_result(const Contestant& contestant, const Tally& tally, const Tally& reference);

/// For programs; what was not measured is null.
std::string to_json(const Report& report);
/// What to_json() wrote to files. Throws kvc::Error (bad_file) if a file is none of these or the files' protocols differ; of
/// results for the same policy, keep fraction and prompt the last file's counts.
Report read_reports(const std::vector<std::string>& paths);

}  // namespace evaluation
