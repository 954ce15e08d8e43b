// Looks at a language model for what policies must know about it: see --help.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "evaluation/analyze_heads.hpp"
#include "evaluation/analyze_layers.hpp"
#include "evaluation/command.hpp"
#include "kvc/error.hpp"
#include "kvc/named/text.hpp"

namespace {

using Words = std::span<const char* const>;

/// What the program can look at; `run` gets the words after the name, --help among them.
struct Analysis {
  const char *name, *help;
  void (*run)(Words);
};

constexpr Analysis Analyses[] = {
    {"heads", "which heads look back for what was said before, for razor_attention", evaluation::analyze_heads},
    {"layers", "which adjacent layers could share directions, for mini_cache", evaluation::analyze_layers},
};

std::string help() {
  std::string text =
      "analyze: what a language model is like, as far as policies depend on it\n\n"
      "usage: analyze ANALYSIS [OPTIONS]; analyze ANALYSIS --help shows the options\n\n";
  for (const Analysis& analysis : Analyses) text += fmt::format("  {:<10}{}\n", analysis.name, analysis.help);
  return text;
}

void analyze(Words words) {
  const std::string_view name = words.empty() ? "" : words[0];
  if (name == "--help") return evaluation::print(help());
  const auto found = std::ranges::find(Analyses, name, &Analysis::name);
  if (found != std::end(Analyses)) return found->run(words.subspan(1));
  std::vector<std::string> names;
  for (const Analysis& analysis : Analyses) names.push_back(analysis.name);
  kvc::fail(kvc::ErrorCode::unknown_name,
            name.empty() ? fmt::format("an analysis is missing; {}", kvc::suggestion(name, names))
                         : fmt::format("unknown analysis '{}'; {}", name, kvc::suggestion(name, names)));
}

}  // namespace

int main(int argc, char** argv) {
  return evaluation::run_command("analyze", argc, argv, analyze);
}
