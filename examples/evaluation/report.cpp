#include "report.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace evaluation {
namespace {

std::string number(std::optional<double> value, int digits, double factor = 1) {
  return value ? fmt::format("{:.{}f}", *value * factor, digits) : "-";
}

std::string number(const std::optional<Mean>& mean, int digits, double factor = 1) {
  return number(mean ? std::optional(mean->value) : std::nullopt, digits, factor);
}

/// "1.091 ±.012": the mean and its standard error.
std::string with_error(const std::optional<Mean>& mean, int digits) {
  if (!mean || !mean->error) return number(mean, digits) + std::string(static_cast<std::size_t>(digits) + 3, ' ');
  std::string error = fmt::format("{:.{}f}", *mean->error, digits);
  if (error.starts_with("0.")) error.erase(0, 1);
  return fmt::format("{} ±{:<{}}", number(mean, digits), error, digits + 1);
}

/// Columns that a terminal shows: the characters of UTF-8.
std::size_t shown(const std::string& text) {
  return static_cast<std::size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

struct Column {
  const char *head, *unit;
  std::size_t width;
};

constexpr Column Columns[] = {{"keep", "", 5},    {"cache", "KiB", 8}, {"ratio", "", 6},   {"x full", "", 13},
                              {"KL", "nats", 14}, {"first", "1/4", 6}, {"last", "1/4", 6}, {"top-1", "%", 5},
                              {"passkey", "", 7}, {"act", "s", 6},     {"token", "ms", 6}};

std::string line(const std::string& first, std::size_t width, const std::vector<std::string>& cells) {
  std::string text = first + std::string(width - shown(first), ' ');
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const std::size_t length = shown(cells[i]);
    text += "  " + std::string(std::max(Columns[i].width, length) - length, ' ') + cells[i];
  }
  return text + "\n";
}

std::string table_head(std::size_t width) {
  std::vector<std::string> heads, units;
  for (const Column& column : Columns) {
    heads.emplace_back(column.head);
    units.emplace_back(column.unit);
  }
  const std::string head = line("policy", width, heads);
  return head + line("", width, units) + std::string(head.size() - 1, '-') + "\n";
}

std::string table_row(const Result& result, std::size_t width) {
  return line(result.policy, width,
              {fmt::format("{}", result.keep), number(result.bytes.value, 0, 1.0 / 1024), number(result.ratio(), 2),
               with_error(result.perplexity_ratio, 3), with_error(result.kl, 4), number(result.kl_first, 4),
               number(result.kl_last, 4), number(result.top1, 1, 100),
               result.asked == 0 ? "-" : fmt::format("{}/{}", result.found, result.asked),
               number(result.act_seconds, 2), number(result.token_ms, 2)});
}

std::string table_of(const PromptResults& length, const Protocol& protocol) {
  std::size_t width = std::string("policy").size();
  for (const Result& result : length.results) width = std::max(width, result.policy.size());
  std::string text = table_head(width);
  for (const Result& result : length.results) text += table_row(result, width);
  text += fmt::format("\nPrompts of {} tokens.", length.prompt);
  if (length.full.perplexity())
    text += fmt::format(" The full cache in f32: perplexity {}.", number(length.full.perplexity(), 3));
  if (length.full.asked != 0)
    text += fmt::format(" It finds {} of {} hidden numbers.", length.full.found, length.full.asked);
  if (length.prompt_seconds) text += fmt::format(" The model reads a prompt in {} s", number(length.prompt_seconds, 2));
  if (length.repeat_seconds)
    text +=
        fmt::format(", and repeats it in {} s for policies that want to see that", number(length.repeat_seconds, 2));
  if (length.prompt_seconds) text += fmt::format(" ({} threads).", protocol.threads);
  return text + "\n\n";
}

std::string legend(const Protocol& protocol, bool asked) {
  std::string text =
      "keep     the fraction of the tokens that a policy with a budget keeps; 1 for policies without, or with their "
      "own\n"
      "cache    what the cache holds at the prompt's end, all its bytes counted, as a mean over the prompts\n"
      "ratio    how many times more the keys and values of all tokens would take in fp16\n";
  if (protocol.windows.count != 0)
    text += fmt::format(
        "x full   perplexity of the {1} tokens after the prompt over that of the full cache in f32; windows: {0}\n"
        "KL       how far predictions are from those of the full cache in f32: mean KL(full || compressed)\n"
        "  1/4    the same over the first quarter of these tokens, and over the last\n"
        "±        the standard error of a mean over windows; one window has none\n"
        "top-1    share of the tokens for which both caches have the same best guess\n",
        protocol.windows.count, protocol.windows.decode);
  if (asked)
    text += "passkey  hidden numbers that were found, of those asked for. Policies act before they see the questions\n";
  text +=
      "act      time that the policy took to compress the cache at the prompt's end, on all threads\n"
      "token    time of one more token through the whole model, on all threads; -: the model's context was full\n";
  if (protocol.fast)
    text +=
        "The model's Q4_0, Q4_1 and Q8_0 weights were multiplied by activations of 8 bits, for the full cache in f32 "
        "too.\n";
  if (protocol.prompt_only) text += "Policies acted once, after the prompt.\n";
  if (protocol.tuning)
    text += "These are texts for settling parameters (--tune-texts): report other texts' figures, not these.\n";
  return text + "--html FILE makes a page of these figures and more, --json FILE writes them for programs.\n";
}

}  // namespace

std::string table(const Report& report) {
  std::string text;
  bool asked = false;
  for (const PromptResults& length : report.lengths) {
    text += table_of(length, report.protocol);
    asked = asked || length.full.asked != 0;
  }
  return text + legend(report.protocol, asked);
}

}  // namespace evaluation
