#include "comparison.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <numeric>
#include <utility>

#include "kvc/error.hpp"
#include "memory_peak.hpp"
#include "repeat_probe.hpp"
#include "statistics.hpp"

namespace evaluation {
namespace {

/// Rounds of timing after a first one that only warms up; odd, so that the median is one of them.
constexpr std::size_t Rounds = 15;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

[[noreturn]] void refuse(const std::string& sentence) {
  kvc::fail(kvc::ErrorCode::invalid_argument, sentence);
}

/// `fed`: how many tokens are fed after the prompt. `ids`: all that must be in the vocabulary.
void check_tokens(const engine::Model& model, std::span<const Contestant> contestants, std::span<const int> prompt,
                  std::size_t fed, std::span<const int> ids) {
  const engine::Config& config = model.config();
  for (const int id : ids)
    if (id < 0 || static_cast<std::size_t>(id) >= config.vocabulary)
      refuse(fmt::format("token id {} is outside the model's vocabulary of {}", id, config.vocabulary));
  if (prompt.size() + fed > config.context)
    refuse(
        fmt::format("prompt and decoded tokens, {} together, are more than the model's context of {}; ask for a "
                    "smaller --prompt or --decode",
                    prompt.size() + fed, config.context));
  for (const Contestant& contestant : contestants)
    if (wants_probe(contestant.policy.stages())) check_repetition(model, prompt, contestant.name);
}

}  // namespace

void check_window(const engine::Model& model, std::span<const Contestant> contestants, const Window& window) {
  if (window.prompt == 0 || window.ids.size() < window.prompt + 2)
    refuse(fmt::format("a window of {} tokens with a prompt of {}: expected a prompt and at least two tokens after it",
                       window.ids.size(), window.prompt));
  const auto prompt = std::span(window.ids).first(window.prompt);
  check_tokens(model, contestants, prompt, window.ids.size() - window.prompt - 1, window.ids);
}

void check_sample(const engine::Model& model, std::span<const Contestant> contestants, const Sample& sample) {
  if (sample.context.empty() || sample.questions.empty()) refuse("a passkey sample lacks a context or a question");
  check_tokens(model, contestants, sample.context, 0, sample.context);
  for (const Question& question : sample.questions) {
    if (question.ids.empty() || question.answer.empty()) refuse("a passkey sample lacks a question or an answer");
    const std::size_t fed = question.ids.size() + question.answer.size() - 1;
    for (const auto* ids : {&question.ids, &question.answer})
      check_tokens(model, contestants, sample.context, fed, *ids);
  }
}

Comparison::Comparison(const engine::Model& model, std::vector<Contestant> contestants,
                       const ComparisonOptions& options)
    : model_(&model), contestants_(std::move(contestants)), options_(options), tallies_(contestants_.size()) {
  // A policy that does not fit is refused here, before any prompt has been computed.
  for (const Contestant& contestant : contestants_) check(contestant);
  for (std::size_t c = 0; c < contestants_.size(); ++c)
    if (wants_probe(contestants_[c].policy.stages())) probing_.push_back(c);
  for (const std::size_t c : probing_) tallies_[c].probed = true;
}

void Comparison::check(const Contestant& contestant) const {
  const std::string text = contestant.policy.to_string();
  for (const auto& stage : contestant.policy.stages())
    if (stage->needs().external_scores)
      kvc::fail(kvc::ErrorCode::missing_feed, text + ": needs scores of a trained scorer, which this program has not");
  try {
    make_cache(contestant, options_.dense);
  } catch (const kvc::Error& error) {
    kvc::fail(error.code(), text + ": " + error.what());
  }
}

void Comparison::check_started(const char* what) const {
  if (caches_.empty()) refuse(fmt::format("{}: no window and no sample has been run before", what));
}

std::unique_ptr<Comparison::Cache> Comparison::make_cache(const Contestant& contestant, kvc::Scalar dense) const {
  const kvc::CacheOptions options{.dense = {dense}, .executor = &model_->executor()};
  return std::make_unique<Cache>(model_->cache_shape(), contestant.policy, options);
}

void Comparison::run(const Window& window, const Report& report) {
  check_window(*model_, contestants_, window);
  const std::size_t steps = window.ids.size() - window.prompt - 1;
  report("prompt");
  start(std::span(window.ids).first(window.prompt), true);
  std::vector<std::vector<Score>> scores(caches_.size());
  for (std::size_t i = 0; i < steps; ++i) {
    if (i % 8 == 0) report(fmt::format("token {} of {}", i, steps));
    step(window.ids[window.prompt + i], window.prompt + i);
    score(static_cast<std::size_t>(window.ids[window.prompt + i + 1]));
    for (std::size_t c = 0; c < caches_.size(); ++c) scores[c].push_back(scores_[c]);
  }
  reference_.windows.push_back(window_score(scores[0]));
  for (std::size_t c = 0; c < contestants_.size(); ++c) tallies_[c].windows.push_back(window_score(scores[c + 1]));
}

void Comparison::run(const Sample& sample, const Report& report) {
  check_sample(*model_, contestants_, sample);
  report("prompt");
  // Windows have the say about memory; samples only where there are none.
  start(sample.context, reference_.windows.empty());
  const std::vector<kvc::CacheCore*> originals = batch_;
  for (std::size_t q = 0; q < sample.questions.size(); ++q) {
    report(fmt::format("question {} of {}", q + 1, sample.questions.size()));
    const bool last = q + 1 == sample.questions.size();  // it needs no fork: nobody comes after it
    std::vector<Cache> forks;
    batch_ = originals;
    for (std::size_t c = 0; !last && c < caches_.size(); ++c) forks.push_back(caches_[c]->fork());
    for (std::size_t c = 0; c < forks.size(); ++c) batch_[c] = &forks[c];
    ask(sample.questions[q], sample.context.size());
    batch_ = originals;
  }
  ++samples_;
}

/// Feeds a question and its answer to what is fed now, and notes who would have said the answer.
void Comparison::ask(const Question& question, std::size_t context) {
  std::vector<int> fed = question.ids;
  fed.insert(fed.end(), question.answer.begin(), question.answer.end() - 1);
  std::vector<bool> found(caches_.size(), true);
  const std::size_t vocabulary = model_->config().vocabulary;
  for (std::size_t i = 0; i < fed.size(); ++i) {
    step(fed[i], context + i);
    if (i + 1 < question.ids.size()) continue;
    const auto wanted = static_cast<std::size_t>(question.answer[i + 1 - question.ids.size()]);
    for (std::size_t c = 0; c < caches_.size(); ++c)
      found[c] = found[c] && argmax(std::span(logits_).subspan(c * vocabulary, vocabulary)) == wanted;
  }
  reference_.answers.push_back({samples_, question.depth, found[0]});
  for (std::size_t c = 0; c < contestants_.size(); ++c)
    tallies_[c].answers.push_back({samples_, question.depth, found[c + 1]});
}

/// `measured`: what the caches hold then, and what it took to make them so, goes into the tallies.
void Comparison::start(std::span<const int> prompt, bool measured) {
  caches_.clear();
  caches_.push_back(make_cache(full_cache(), kvc::Scalar::f32));
  for (const Contestant& contestant : contestants_) caches_.push_back(make_cache(contestant, options_.dense));
  batch_.clear();
  for (const auto& cache : caches_) batch_.push_back(cache.get());
  read(prompt);
  if (!probing_.empty()) repeat(prompt);
  act(measured);
  if (measured) measure_caches(prompt.size());
}

/// The prompt through the model once; the reference cache does the attention, the others are fed beside it.
void Comparison::read(std::span<const int> prompt) {
  std::vector<kvc::Position> positions(prompt.size());
  std::iota(positions.begin(), positions.end(), 0);
  double beside = 0;
  const auto feed = [&](std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
    caches_[0]->prefill(layer, rows, out, false);
    const auto begin = Clock::now();
    model_->executor().parallel_for(contestants_.size(),
                                    [&](std::size_t c) { caches_[c + 1]->prefill(layer, rows, {}, false); });
    beside += seconds_since(begin);
  };
  const auto begin = Clock::now();
  model_->forward(prompt, positions, feed, {}, workspace_);
  prompt_seconds_.push_back(seconds_since(begin) - beside);
}

/// The probing policies see the prompt repeated, with the reference cache's attention.
void Comparison::repeat(std::span<const int> prompt) {
  std::vector<kvc::CacheCore*> asked = {batch_[0]};
  for (const std::size_t c : probing_) asked.push_back(batch_[c + 1]);
  repeat_seconds_.push_back(repeat_prompt(*model_, asked, prompt, workspace_));
}

/// One policy after the other, each on all threads.
void Comparison::act(bool measured) {
  caches_[0]->compress();
  for (std::size_t c = 0; c < contestants_.size(); ++c) {
    if (!measured) {
      caches_[c + 1]->compress();
      continue;
    }
    Tally& tally = tallies_[c];
    const MemoryPeak peak;
    const auto begin = Clock::now();
    caches_[c + 1]->compress();
    tally.act_seconds.push_back(seconds_since(begin));
    if (const auto bytes = peak.bytes())
      tally.act_peak_bytes = std::max(tally.act_peak_bytes.value_or(0), static_cast<double>(*bytes));
  }
}

void Comparison::measure_caches(std::size_t prompt) {
  const auto note = [&](Tally& tally, const Cache& cache) {
    tally.footprints.push_back(measure(cache));
    if (tally.footprints.size() == 1 && tally.footprints[0].kept < 1) tally.kept = picture(cache, prompt);
  };
  note(reference_, *caches_[0]);
  for (std::size_t c = 0; c < contestants_.size(); ++c) note(tallies_[c], *caches_[c + 1]);
}

/// Feeds `token` to every cache and leaves their logits.
void Comparison::step(int token, std::size_t position) {
  token_ = token;
  position_ = position + 1;
  const engine::Config& config = model_->config();
  logits_.resize(caches_.size() * config.vocabulary);
  queries_.resize(config.layers * caches_.size() * config.query_width());
  const std::vector<int> tokens(caches_.size(), token);
  const std::vector<kvc::Position> positions(caches_.size(), static_cast<kvc::Position>(position));
  const auto attention = [&](std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
    attend(layer, rows, out);
  };
  model_->forward(tokens, positions, attention, {logits_.data(), caches_.size(), config.vocabulary}, workspace_);
}

void Comparison::attend(std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
  const std::size_t width = model_->config().query_width();
  for (std::size_t c = 0; c < caches_.size(); ++c)
    std::ranges::copy(rows.q[c], queries_.begin() + static_cast<std::ptrdiff_t>((layer * caches_.size() + c) * width));
  if (!options_.prompt_only) return kvc::decode_batch(batch_, layer, rows, out, model_->executor());
  // A policy sleeps over drafted tokens, and these are never accepted.
  model_->executor().parallel_for(caches_.size(), [&](std::size_t c) {
    const kvc::Tokens row{.q = rows.q.subrows(c, 1),
                          .k = rows.k.subrows(c, 1),
                          .v = rows.v.subrows(c, 1),
                          .positions = rows.positions.subspan(c, 1)};
    batch_[c]->draft(layer, row, out.subrows(c, 1));
  });
}

void Comparison::score(std::size_t target) {
  const std::size_t vocabulary = model_->config().vocabulary;
  const auto logits = [&](std::size_t c) {
    return std::span<const float>(logits_).subspan(c * vocabulary, vocabulary);
  };
  prediction_.set(logits(0));
  scores_.resize(caches_.size());
  model_->executor().parallel_for(caches_.size(),
                                  [&](std::size_t c) { scores_[c] = prediction_.score(logits(c), target); });
}

void Comparison::time_attention() {
  check_started("time_attention");
  const std::size_t layers = model_->config().layers, width = model_->config().query_width();
  std::vector<float> memory(width);
  std::vector<std::vector<double>> times(caches_.size());
  // Processor time, because other programs may be running. Contestants take turns, so that whatever disturbs the
  // machine meets all of them. Round 0 only warms up.
  for (std::size_t round = 0; round <= Rounds; ++round) {
    for (std::size_t c = 0; c < caches_.size(); ++c) {
      const std::clock_t begin = std::clock();
      for (std::size_t layer = 0; layer < layers; ++layer) {
        const float* query = queries_.data() + (layer * caches_.size() + c) * width;
        caches_[c]->attend(layer, {query, 1, width}, {memory.data(), 1, width});
      }
      const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
      if (round != 0) times[c].push_back(seconds * 1e6 / static_cast<double>(layers));
    }
  }
  reference_.attend_us = median(times[0]);
  for (std::size_t c = 0; c < contestants_.size(); ++c) tallies_[c].attend_us = median(times[c + 1]);
}

/// The last step's token again, through the model with one cache.
void Comparison::step_alone(std::size_t cache) {
  const auto position = static_cast<kvc::Position>(position_);
  const std::span<kvc::CacheCore* const> alone(&batch_[cache], 1);
  const auto attention = [&](std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
    if (options_.prompt_only)
      caches_[cache]->draft(layer, rows, out);
    else
      kvc::decode_batch(alone, layer, rows, out, model_->executor());
  };
  model_->forward({&token_, 1}, {&position, 1}, attention, {logits_.data(), 1, model_->config().vocabulary},
                  workspace_);
}

void Comparison::time_tokens() {
  check_started("time_tokens");
  const std::size_t rounds = std::min(Rounds + 1, model_->config().context - position_);
  if (rounds < 2) return;
  std::vector<std::vector<double>> times(caches_.size());
  for (std::size_t round = 0; round < rounds; ++round, ++position_) {
    for (std::size_t c = 0; c < caches_.size(); ++c) {
      const auto begin = Clock::now();
      step_alone(c);
      const double seconds = seconds_since(begin);
      if (round != 0) times[c].push_back(seconds * 1e3);
    }
  }
  reference_.token_ms = median(times[0]);
  for (std::size_t c = 0; c < contestants_.size(); ++c) tallies_[c].token_ms = median(times[c + 1]);
}

}  // namespace evaluation
