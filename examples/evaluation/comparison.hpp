#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "contestants.hpp"
#include "engine/model.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "passkey.hpp"
#include "scoring.hpp"
#include "windows.hpp"

namespace evaluation {

struct ComparisonOptions {
  kvc::Scalar dense = kvc::Scalar::f16;  ///< of rows that no policy quantizes; the reference is f32 always
  /// Policies act once, after the prompt, and what is generated stays as it is: the protocol of kvpress.
  bool prompt_only = false;
};

/// These throw kvc::Error (invalid_argument) if a window or a sample cannot be run with these contestants: it has too few
/// tokens, one that the model does not know, or more than the model's context holds, the repetition of the prompt for
/// policies that want a probe included.
void check_window(const engine::Model& model, std::span<const Contestant> contestants, const Window& window);
void check_sample(const engine::Model& model, std::span<const Contestant> contestants, const Sample& sample);

/// Runs many policies on the same text in step: a prompt is computed once, with full attention, and fed to all caches;
/// then all of them decode as one batch, each over its own compressed cache.
///
/// The prompts of all caches stay open until the model has read it. If there are policies that want a probe (Needs::probe),
/// the model is then asked to repeat the prompt piece by piece, and they see what the repetition attends to; nothing of it
/// stays in a cache. Then compress() ends the prompt of one cache after the other, which tells what each policy costs.
class Comparison {
 public:
  /// Called now and then with what is being done.
  using Report = std::function<void(const std::string&)>;

  /// Throws kvc::Error if a policy cannot work on this model. The model must outlive the comparison.
  Comparison(const engine::Model& model, std::vector<Contestant> contestants, const ComparisonOptions& options);

  /// Prefills the prompt, feeds the rest teacher-forced and scores every prediction against the full cache's.
  void run(const Window& window, const Report& report);
  /// Prefills the context and asks one question after the other, each of a fork of every cache. Question and answer are fed
  /// teacher-forced; the answer is found if each of its tokens is the argmax.
  void run(const Sample& sample, const Report& report);
  /// Times attention over the caches as the last run left them, with its last queries, on this thread: processor time,
  /// the median of several rounds over all contestants.
  void time_attention();
  /// Times whole tokens through the model with each cache alone, on all threads: the median of several rounds. The caches
  /// take the tokens in, so this comes last. Where the model's context has room for fewer rounds, there are fewer; where
  /// there is room for less than two, nothing is timed.
  void time_tokens();

  const std::vector<Contestant>& contestants() const { return contestants_; }
  /// One per contestant.
  const std::vector<Tally>& tallies() const { return tallies_; }
  /// Of the full cache in f32, which takes part whether it is a contestant or not.
  const Tally& reference() const { return reference_; }
  /// Seconds that the model took to read the prompts, each with full attention, and to repeat them. What the contestants'
  /// caches do meanwhile does not count.
  const std::vector<double>& prompt_seconds() const { return prompt_seconds_; }
  const std::vector<double>& repeat_seconds() const { return repeat_seconds_; }

 private:
  using Cache = kvc::KVCache<kvc::AnyPolicy>;

  void check(const Contestant& contestant) const;
  void check_started(const char* what) const;
  std::unique_ptr<Cache> make_cache(const Contestant& contestant, kvc::Scalar dense) const;
  void start(std::span<const int> prompt, bool measured);
  void read(std::span<const int> prompt);
  void repeat(std::span<const int> prompt);
  void act(bool measured);
  void measure_caches(std::size_t prompt);
  void ask(const Question& question, std::size_t context);
  void step(int token, std::size_t position);
  void attend(std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out);
  void step_alone(std::size_t cache);
  void score(std::size_t target);

  const engine::Model* model_;
  std::vector<Contestant> contestants_;
  std::vector<std::size_t> probing_;  ///< of contestants_: those whose policy wants a probe
  ComparisonOptions options_;
  std::vector<Tally> tallies_;
  Tally reference_;

  /// The reference's first, then one per contestant; remade for every prompt.
  std::vector<std::unique_ptr<Cache>> caches_;
  std::vector<kvc::CacheCore*> batch_;  ///< what is fed: these, or forks of them
  engine::Workspace workspace_;
  ReferencePrediction prediction_;
  std::vector<float> logits_;   ///< [caches, vocabulary]
  std::vector<float> queries_;  ///< of the last step, [layers, caches, query_heads * head_dim]
  std::vector<Score> scores_;   ///< of the last step, one per cache
  int token_ = 0;               ///< of the last step
  std::size_t position_ = 0;    ///< of the next token
  std::size_t samples_ = 0;     ///< that have been run
  std::vector<double> prompt_seconds_, repeat_seconds_;
};

}  // namespace evaluation
