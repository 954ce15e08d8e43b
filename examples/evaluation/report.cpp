#include "report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "json.hpp"

namespace evaluation {
namespace {

std::string number(std::optional<double> value, int digits, double factor = 1) {
  return value ? fmt::format("{:.{}f}", *value * factor, digits) : "-";
}

std::string table_row(const Result& result, std::size_t width) {
  return fmt::format("{:<{}}  {:>5}  {:>8.0f}  {:>6.2f}  {:>6.1f}  {:>10}  {:>7}  {:>7}  {:>6}  {:>7}  {:>9}  {:>6}\n",
                     result.policy, width, fmt::format("{}", result.keep), result.bytes / 1024, result.ratio(),
                     result.kept_fraction * 100, number(result.perplexity(), 3), number(result.perplexity_ratio, 3),
                     number(result.kl, 4), number(result.top1, 1, 100),
                     result.samples == 0 ? "-" : fmt::format("{}/{}", result.exact, result.samples),
                     number(result.attend_us, 1), number(result.token_ms, 2));
}

std::string table_head(std::size_t width) {
  const auto line = [&](const char* policy, auto... names) {
    return fmt::format("{:<{}}  {:>5}  {:>8}  {:>6}  {:>6}  {:>10}  {:>7}  {:>7}  {:>6}  {:>7}  {:>9}  {:>6}\n", policy,
                       width, names...);
  };
  std::string head = line("policy", "keep", "cache", "ratio", "kept", "perplexity", "x full", "KL", "top-1", "passkey",
                          "attention", "token");
  head += line("", "", "KiB", "", "%", "", "", "nats", "%", "", "us", "ms");
  return head + std::string(head.find('\n'), '-') + "\n";
}

std::string legend(const Result& reference, const Protocol& protocol) {
  const WindowPlan& plan = protocol.windows;
  std::string text =
      "keep       the fraction of the tokens that a policy with a budget keeps; 1 for policies without, or with their "
      "own\n"
      "cache      what the cache holds at the prompt's end, all its bytes counted, as a mean over the prompts\n"
      "ratio      how many times more the keys and values of all tokens would take in fp16\n"
      "kept       share of the tokens that are still in the cache at the prompt's end\n";
  if (plan.count != 0)
    text += fmt::format(
        "perplexity of the tokens after the prompt, over {1} windows of {2} prompt + {3} decoded tokens\n"
        "x full     that perplexity over the one of the full cache in f32, which is {0}\n"
        "KL         how far predictions are from those of the full cache in f32: mean KL(full || compressed)\n"
        "top-1      share of the tokens for which both caches have the same best guess\n",
        number(reference.perplexity(), 3), plan.count, plan.prompt, plan.decode);
  if (protocol.samples != 0)
    text += fmt::format(
        "passkey    hidden numbers that were found, of {}; the full cache in f32 finds {}. Policies act before they "
        "see "
        "the question\n",
        protocol.samples, reference.exact);
  text +=
      "attention  processor time of a token's attention in one layer, on one thread, after the last decoded token\n";
  text += fmt::format(
      "token      time of one more token through the whole model, on {} threads; -: the model's context was full\n",
      protocol.threads);
  if (protocol.fast)
    text +=
        "The model's Q4_0, Q4_1 and Q8_0 weights were multiplied by activations of 8 bits, for the full cache in f32 "
        "too.\n";
  if (protocol.prompt_only) text += "Policies acted once, after the prompt.\n";
  return text;
}

Json json_optional(std::optional<double> value) {
  return value ? Json(*value) : Json(nullptr);
}

Json json_result(const Result& result) {
  return {{"policy", result.policy},
          {"keep", result.keep},
          {"bytes", result.bytes},
          {"dense_bytes", result.dense_bytes},
          {"ratio", result.ratio()},
          {"kept_fraction", result.kept_fraction},
          {"nll", json_optional(result.nll)},
          {"perplexity", json_optional(result.perplexity())},
          {"perplexity_ratio", json_optional(result.perplexity_ratio)},
          {"kl", json_optional(result.kl)},
          {"top1", json_optional(result.top1)},
          {"passkey", json_optional(result.passkey)},
          {"attend_us", json_optional(result.attend_us)},
          {"token_ms", json_optional(result.token_ms)}};
}

Json json_protocol(const Protocol& protocol) {
  const WindowPlan& plan = protocol.windows;
  return {{"text", protocol.text},
          {"windows", plan.count},
          {"offset", plan.offset},
          {"stride", plan.stride},
          {"prompt", plan.prompt},
          {"decode", plan.decode},
          {"passkey_samples", protocol.samples},
          {"dense", protocol.dense},
          {"policies_act", protocol.prompt_only ? "after the prompt" : "after the prompt and every token"},
          {"fast", protocol.fast},
          {"threads", protocol.threads},
          {"reference", "full:type=f32"}};
}

}  // namespace

std::optional<double> Result::perplexity() const {
  return nll ? std::optional<double>(std::exp(*nll)) : std::nullopt;
}

Result make_result(const Contestant& contestant, const Tally& tally, const Tally& reference) {
  const auto prompts = static_cast<double>(std::max<std::size_t>(1, tally.prompts));
  Result result;
  result.policy = contestant.name;
  result.keep = contestant.keep;
  result.bytes = tally.bytes / prompts;
  result.dense_bytes = tally.dense_bytes / prompts;
  result.kept_fraction = tally.kept / prompts;
  result.exact = tally.exact;
  result.samples = tally.samples;
  result.attend_us = tally.attend_us;
  result.token_ms = tally.token_ms;
  if (!tally.window_nll.empty()) {
    result.nll = tally.mean_nll();
    result.perplexity_ratio = perplexity_ratio(tally, reference);
    result.kl = tally.kl / static_cast<double>(tally.predictions);
    result.top1 = static_cast<double>(tally.same_top) / static_cast<double>(tally.predictions);
  }
  if (tally.samples != 0) result.passkey = static_cast<double>(tally.exact) / static_cast<double>(tally.samples);
  return result;
}

std::string table(const std::vector<Result>& results, const Result& reference, const Protocol& protocol) {
  std::size_t width = std::string("policy").size();
  for (const Result& result : results) width = std::max(width, result.policy.size());
  std::string text = table_head(width);
  for (const Result& result : results) text += table_row(result, width);
  return text + "\n" + legend(reference, protocol);
}

std::string json(const std::vector<Result>& results, const Result& reference, const Protocol& protocol) {
  Json report = {{"model", protocol.model}, {"protocol", json_protocol(protocol)}, {"full", json_result(reference)}};
  for (const Result& result : results) report["results"].push_back(json_result(result));
  return to_text(report);
}

}  // namespace evaluation
