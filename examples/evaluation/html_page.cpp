#include "html_page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "html_style.hpp"
#include "png.hpp"
#include "quality_plot.hpp"
#include "svg.hpp"

namespace evaluation {
namespace {

std::string number(std::optional<double> value, int digits, double factor = 1) {
  return value ? fmt::format("{:.{}f}", *value * factor, digits) : "–";
}

std::string with_error(const std::optional<Mean>& mean, int digits, double factor = 1) {
  if (!mean) return "–";
  std::string text = number(mean->value, digits, factor);
  if (mean->error) text += fmt::format(" <small>± {}</small>", number(*mean->error, digits, factor));
  return text;
}

std::string policy_cell(const Result& result) {
  const std::string keep = result.keep == 1 ? "" : fmt::format(" <small>at {}</small>", brief(result.keep));
  return fmt::format("<td><span class=\"dot {}\"></span>{}{}</td>", name_of(kind_of(result)), escaped(result.policy),
                     keep);
}

/// A table that scrolls sideways where it must; `heads` are HTML.
std::string table_of(const std::vector<std::string>& heads, const std::string& rows) {
  std::string text = "<div class=\"scroll\"><table><thead><tr>";
  for (const std::string& head : heads) text += (head.starts_with("<th") ? head : "<th>" + head) + "</th>";
  return text + "</tr></thead><tbody>\n" + rows + "</tbody></table></div>\n";
}

std::string both_widths(const PromptResults& length, const Protocol& protocol, Quality quality) {
  return "<div class=\"wide\">" + quality_plot(length, protocol, {quality, false, false}) +
         "</div><div class=\"narrow\">" + quality_plot(length, protocol, {quality, true, false}) + "</div>";
}

std::string quality_section(const PromptResults& length, const Protocol& protocol) {
  if (!length.full.nll) return "";
  std::string text =
      "<h3>Quality against bytes</h3>\n<figure>" + both_widths(length, protocol, Quality::divergence) +
      "<figcaption>How far the predictions over each cache are from those of the full cache in f32, "
      "against how much smaller the cache is. Right and down is better. Bars are one standard error over "
      "windows; points rest on the lowest line if they are below it.</figcaption></figure>\n";
  return text + "<figure>" + both_widths(length, protocol, Quality::perplexity) +
         fmt::format(
             "<figcaption>The same for the perplexity of the text, which is {} over the full cache. Points above "
             "the plot stand at its upper edge, with their figure.</figcaption></figure>\n",
             number(length.full.perplexity(), 3));
}

/// Rows of the heat map: the full cache in f32 for comparison, then the results.
std::string depth_section(const PromptResults& length) {
  std::set<double> depths;
  for (const DepthCount& at : length.full.by_depth) depths.insert(at.depth);
  if (depths.empty()) return "";
  std::vector<std::string> heads = {"policy", "<th class=\"heat\">all"};
  for (const double depth : depths) heads.push_back(fmt::format("<th class=\"heat\">{:.0f} %", depth * 100));
  const auto cell = [](std::size_t found, std::size_t asked) {
    if (asked == 0) return std::string("<td>–</td>");
    return fmt::format("<td class=\"heat\" style=\"--share:{:.0f}%\">{}/{}</td>",
                       100 * static_cast<double>(found) / static_cast<double>(asked), found, asked);
  };
  const auto row = [&](const Result& result) {
    std::string cells = cell(result.found, result.asked);
    for (const double depth : depths) {
      const auto at = std::ranges::find(result.by_depth, depth, &DepthCount::depth);
      cells += at == result.by_depth.end() ? cell(0, 0) : cell(at->found, at->asked);
    }
    return "<tr>" + policy_cell(result) + cells + "</tr>\n";
  };
  const auto is_full = [&](const Result& result) { return result.policy == length.full.policy; };
  std::string rows = std::ranges::any_of(length.results, is_full) ? "" : row(length.full);
  for (const Result& result : length.results) rows += row(result);
  return "<h3>Numbers found again, by where they were hidden</h3>\n<p>Numbers stand in the prompt, so many percent "
         "from its "
         "beginning. Policies compress the prompt before they see a question; then each number is asked for in turn, "
         "of a "
         "fork of the same compressed cache. Found means that every digit is the model's first choice.</p>\n" +
         table_of(heads, rows);
}

/// One policy's picture with its axes.
std::string kept_figure(const Result& result, std::size_t prompt) {
  constexpr double Left = 34, Top = 6, Wide = 296, High = 180;
  Svg svg(Left + Wide + 8, Top + High + 34, "positions kept by " + result.label());
  svg.add(fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" class=\"axis\"/>\n", Left, Top,
                      Wide, High));
  constexpr Colour Blue{45, 125, 220};
  svg.add(
      fmt::format("<image x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" preserveAspectRatio=\"none\" href=\"{}\"/>\n",
                  Left, Top, Wide, High, png_url(png_of(result.kept.pixels, result.kept.columns, Blue))));
  const Scale tokens{0, static_cast<double>(prompt), Left, Left + Wide};
  const Scale heads{0, static_cast<double>(result.kept.rows()), Top, Top + High};
  for (const double token : {0.0, 0.25, 0.5, 0.75, 1.0})
    svg.text(tokens.at(token * tokens.high), Top + High + 14, token == 1 ? "end" : "middle", "soft",
             brief(token * tokens.high));
  for (const double head : round_numbers(0, heads.high, 5))
    svg.text(Left - 5, heads.at(head) + 4, "end", "soft", brief(head));
  svg.text(Left + Wide / 2, Top + High + 29, "middle", "ink", "position in the prompt");
  svg.upright_text(9, Top + High / 2, "ink", "head, from the first layer");
  return fmt::format("<figure><figcaption>{}, {:.1f} % kept</figcaption>{}</figure>\n", escaped(result.label()),
                     result.kept_fraction.value * 100, svg.finish());
}

std::string kept_section(const PromptResults& length) {
  std::string figures;
  for (const Result& result : length.results)
    if (result.kept.rows() != 0) figures += kept_figure(result, length.prompt);
  if (figures.empty()) return "";
  return "<h3>What is kept</h3>\n<p>The first prompt's tokens that each KV head still holds when the policy has acted: "
         "a row "
         "for every head of every layer, the first layer on top; the stronger the colour, the more of a stretch of "
         "tokens is "
         "there.</p>"
         "\n<div class=\"gallery\">\n" +
         figures + "</div>\n";
}

std::string bytes_section(const PromptResults& length) {
  constexpr const char* Names[] = {"dense rows", "codes", "scales and minima",
                                   "positions, row maps, what policies remember", "allocated, not in use"};
  std::string key = "<div class=\"key\">";
  for (std::size_t part = 0; part < std::size(Names); ++part)
    key += fmt::format("<span><i class=\"p{}\"></i>{}</span>", part, Names[part]);
  std::string rows;
  for (const Result& result : length.results) {
    const Parts& parts = result.parts;
    const double all[] = {parts.dense, parts.codes, parts.scales, parts.metadata, parts.slack};
    std::string stack = "<div class=\"stack\">";
    for (std::size_t part = 0; part < std::size(all); ++part)
      if (all[part] > 0)
        stack += fmt::format("<i class=\"p{0}\" style=\"width:{1:.2f}%\" title=\"{2}: {3:.0f} KiB, {1:.1f} %\"></i>",
                             part, 100 * all[part] / result.bytes.value, Names[part], all[part] / 1024);
    rows += fmt::format(
        "<tr>{}<td class=\"wide\">{}</div></td><td>{:.0f}</td><td>{:.2f}</td><td>{:.1f}</td><td>{:.1f}</td></tr>\n",
        policy_cell(result), stack, result.bytes.value / 1024, 100 * result.bytes.value / result.dense_bytes,
        100 * parts.metadata / result.bytes.value, 100 * parts.slack / result.bytes.value);
  }
  return "<h3>Where the bytes are</h3>\n<p>All that a cache holds at the prompt's end, as shares of it.</p>\n" + key +
         "</div>\n" +
         table_of(
             {"policy", "<th class=\"left\">parts", "KiB", "% of fp16", "positions<br>and maps, %", "not in<br>use, %"},
             rows);
}

std::string bar(std::optional<double> value, double most) {
  if (!value || most <= 0) return "";
  return fmt::format("<div class=\"bar\"><i style=\"width:{:.1f}%\"></i></div>", 100 * *value / most);
}

std::string time_row(const PromptResults& length, const Result& result, double most) {
  const bool known = result.act_seconds && length.prompt_seconds;
  const std::string share = known ? number(*result.act_seconds / *length.prompt_seconds, 2) : "–";
  return fmt::format(
      "<tr>{}<td class=\"wide\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
      policy_cell(result), bar(result.attend_us, most), number(result.attend_us, 1), number(result.token_ms, 2),
      number(result.act_seconds, 3), share, number(result.act_peak_bytes, 1, 1.0 / (1 << 20)),
      number(tokens_until_paid(length, result), 0));
}

std::string time_section(const PromptResults& length, const Protocol& protocol) {
  double most = 0;
  for (const Result& result : length.results) most = std::max(most, result.attend_us.value_or(0));
  if (most == 0) return "";
  std::string rows;
  for (const Result& result : length.results) rows += time_row(length, result, most);
  std::string text = fmt::format("<h3>Time and working memory</h3>\n<p>On {} threads of {}. ", protocol.threads,
                                 escaped(protocol.machine));
  if (length.prompt_seconds) text += fmt::format("The model reads a prompt in {:.2f} s. ", *length.prompt_seconds);
  if (length.repeat_seconds)
    text += fmt::format("Policies that learn from a repetition of the prompt cost {:.2f} s of the model more. ",
                        *length.repeat_seconds);
  return text +
         "Attention: processor time of one token in one layer, on one thread. Token: one more through the whole model. "
         "Compressing: what the policy takes at the prompt's end, also as a multiple of the time to read the prompt, "
         "and the memory that it takes meanwhile. Paid: after so many decoded tokens, each faster than over the full "
         "cache in fp16, that time and the repetition are made up for.</p>\n" +
         table_of({"policy", "<th class=\"left\">attention", "µs", "token<br>ms", "compressing<br>s", "× prompt",
                   "memory<br>MiB", "paid after<br>tokens"},
                  rows);
}

std::string figures_section(const PromptResults& length) {
  const std::vector<std::size_t> front = pareto_front(length.results, Quality::divergence);
  std::string rows;
  for (std::size_t i = 0; i < length.results.size(); ++i) {
    const Result& r = length.results[i];
    rows += fmt::format(
        "<tr{}>{}<td>{:.0f}</td><td>{:.2f}</td><td>{:.1f}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</"
        "td><td>{}"
        "</td></tr>\n",
        std::ranges::count(front, i) != 0 ? " class=\"best\"" : "", policy_cell(r), r.bytes.value / 1024, r.ratio(),
        r.kept_fraction.value * 100, with_error(r.perplexity_ratio, 3), with_error(r.kl, 4), with_error(r.kl_first, 4),
        with_error(r.kl_last, 4), with_error(r.top1, 1, 100),
        r.asked == 0 ? "–"
                     : fmt::format("{}/{} <small>± {} %</small>", r.found, r.asked,
                                   number(r.passkey ? r.passkey->error : std::nullopt, 0, 100)));
  }
  return "<h3>All figures</h3>\n<p>Means with their standard errors: over windows, and for passkeys over prompts. ● "
         "stands on the Pareto "
         "front of KL against bytes.</p>\n" +
         table_of({"policy", "cache<br>KiB", "times<br>smaller", "kept<br>%", "perplexity<br>× full", "KL<br>nats",
                   "KL of the<br>first quarter", "KL of the<br>last quarter", "top-1<br>%", "passkeys"},
                  rows);
}

std::string protocol_section(const Report& report) {
  const Protocol& protocol = report.protocol;
  const WindowPlan& plan = protocol.windows;
  std::string items;
  const auto item = [&](const char* name, const std::string& value) {
    items += fmt::format("<dt>{}</dt><dd>{}</dd>\n", name, escaped(value));
  };
  item("model", protocol.model);
  item("texts", fmt::format("{}", fmt::join(protocol.texts, ", ")));
  item("windows",
       fmt::format("{}, each a prompt and {} tokens after it that are fed one by one; in a text they begin at "
                   "token {} and then every {}",
                   plan.count, plan.decode, plan.offset, plan.stride));
  if (protocol.samples != 0)
    item("passkeys", fmt::format("{} prompts with {} numbers in each", protocol.samples, protocol.needles));
  item("compared with", "the full cache in f32, fed with the same tokens");
  item("policies act", protocol.prompt_only ? "once, after the prompt" : "after the prompt and after every token");
  item("dense numbers", protocol.dense);
  item("model's weights", protocol.fast ? "multiplied by activations of 8 bits" : "multiplied in f32");
  item("machine", fmt::format("{}, {} threads", protocol.machine, protocol.threads));
  std::string commands;
  for (const std::string& command : protocol.commands) commands += escaped(command) + "\n";
  return "<h2 id=\"protocol\">How this was measured</h2>\n<dl>" + items +
         "</dl>\n<p>Every policy has a cache of its own, and all caches are fed the same tokens. Bytes are counted as "
         "they "
         "are allocated: codes, scales, positions, maps, what policies remember, and what is not in use.</p>\n<pre>" +
         commands + "</pre>\n";
}

std::string length_section(const PromptResults& length, const Protocol& protocol) {
  return fmt::format("<h2 id=\"p{0}\">Prompts of {0} tokens</h2>\n", length.prompt) +
         quality_section(length, protocol) + figures_section(length) + depth_section(length) + bytes_section(length) +
         time_section(length, protocol) + kept_section(length);
}

}  // namespace

std::string html_page(const Report& report) {
  const std::string model = model_name(report.protocol);
  std::string body = fmt::format(
      "<h1>KV-cache compression, compared on {}</h1>\n<p class=\"lead\">What each policy leaves of "
      "the cache, and what that costs in quality, retrieval and time.</p>\n<nav>",
      escaped(model));
  for (const PromptResults& length : report.lengths)
    body += fmt::format("<a href=\"#p{0}\">prompts of {0} tokens</a>", length.prompt);
  body += "<a href=\"#protocol\">how this was measured</a></nav>\n";
  for (const PromptResults& length : report.lengths) body += length_section(length, report.protocol);
  body += protocol_section(report);
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" "
         "content=\"width=device-width,initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light "
         "dark\">\n<title>KV-cache "
         "compression on " +
         escaped(model) + "</title>\n<style>\n" + plot_style() + PageStyle + "</style></head>\n<body><main>\n" + body +
         "</main></body></html>\n";
}

}  // namespace evaluation
