#include "results.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace evaluation {
namespace {

template <class Items, class Read>
std::optional<Mean> mean_over(const Items& items, Read read) {
  std::vector<double> values;
  for (const auto& item : items)
    if (const std::optional<double> value = read(item)) values.push_back(*value);
  return mean_of(values);
}

/// The geometric mean over windows of what the perplexity is to the reference's.
Mean mean_ratio(const Tally& tally, const Tally& reference) {
  std::vector<double> differences;
  for (std::size_t w = 0; w < tally.windows.size(); ++w)
    differences.push_back(tally.windows[w].nll - reference.windows[w].nll);
  const Mean mean = *mean_of(differences);
  const double ratio = std::exp(mean.value);
  return {ratio, mean.error ? std::optional(*mean.error * ratio) : std::nullopt};
}

/// Questions about one prompt are no repetitions of each other: what a policy lost of a prompt it may have lost of all.
std::optional<Mean> share_found(const std::vector<Answer>& answers) {
  std::map<std::size_t, std::pair<double, double>> prompts;  // found, asked
  for (const Answer& answer : answers) {
    prompts[answer.prompt].first += answer.found;
    prompts[answer.prompt].second += 1;
  }
  std::vector<double> shares;
  for (const auto& [prompt, counts] : prompts) shares.push_back(counts.first / counts.second);
  return mean_of(shares);
}

std::vector<DepthCount> count_by_depth(const std::vector<Answer>& answers) {
  std::map<double, DepthCount> counts;
  for (const Answer& answer : answers) {
    if (!answer.depth) continue;
    DepthCount& count = counts[*answer.depth];
    count.depth = *answer.depth;
    count.found += answer.found;
    ++count.asked;
  }
  std::vector<DepthCount> all;
  for (const auto& [depth, count] : counts) all.push_back(count);
  return all;
}

void add_footprints(Result& result, const std::vector<Footprint>& footprints) {
  result.bytes = mean_over(footprints, [](const Footprint& at) { return std::optional(at.bytes); }).value_or(Mean{});
  result.kept_fraction =
      mean_over(footprints, [](const Footprint& at) { return std::optional(at.kept); }).value_or(Mean{});
  for (const Footprint& at : footprints) {
    result.dense_bytes += at.dense_bytes / static_cast<double>(footprints.size());
    result.parts += at.parts;
  }
  if (!footprints.empty()) result.parts /= static_cast<double>(footprints.size());
}

}  // namespace

std::string model_name(const Protocol& protocol) {
  std::string name = protocol.model.substr(protocol.model.find_last_of('/') + 1);
  if (name.ends_with(".gguf")) name.resize(name.size() - std::string_view(".gguf").size());
  return name;
}

std::optional<double> Result::perplexity() const {
  return nll ? std::optional<double>(std::exp(nll->value)) : std::nullopt;
}

std::optional<double> tokens_until_paid(const PromptResults& length, const Result& result) {
  const auto dense = std::ranges::find(length.results, "full", &Result::policy);
  if (dense == length.results.end() || !dense->token_ms || !result.token_ms || !result.act_seconds) return std::nullopt;
  const double saved = *dense->token_ms - *result.token_ms;
  if (saved <= 0) return std::nullopt;
  const double spent = *result.act_seconds + (result.probed ? length.repeat_seconds.value_or(0) : 0);
  return spent * 1000 / saved;
}

std::string Result::label() const {
  return keep == 1 ? policy : fmt::format("{} at {}", policy, keep);
}

Result make_result(const Contestant& contestant, const Tally& tally, const Tally& reference) {
  Result result;
  result.policy = contestant.name;
  result.keep = contestant.keep;
  add_footprints(result, tally.footprints);
  result.nll = mean_over(tally.windows, [](const WindowScore& window) { return std::optional(window.nll); });
  result.kl = mean_over(tally.windows, [](const WindowScore& window) { return std::optional(window.kl); });
  result.kl_first = mean_over(tally.windows, [](const WindowScore& window) { return window.kl_first; });
  result.kl_last = mean_over(tally.windows, [](const WindowScore& window) { return window.kl_last; });
  result.top1 = mean_over(tally.windows, [](const WindowScore& window) { return std::optional(window.top1); });
  if (result.nll) result.perplexity_ratio = mean_ratio(tally, reference);
  result.passkey = share_found(tally.answers);
  result.asked = tally.answers.size();
  result.found = static_cast<std::size_t>(std::ranges::count(tally.answers, true, &Answer::found));
  result.by_depth = count_by_depth(tally.answers);
  result.probed = tally.probed;
  if (!tally.act_seconds.empty()) result.act_seconds = median(tally.act_seconds);
  result.act_peak_bytes = tally.act_peak_bytes;
  result.attend_us = tally.attend_us;
  result.token_ms = tally.token_ms;
  result.kept = tally.kept;
  return result;
}

}  // namespace evaluation
