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
#include "kvc/named/suggestion.hpp"

namespace {

using Words = std::span<const char* const>;

/// What the program can look at; `run` gets the words after the name, --help among them.
struct Analysis {
  const char *name, *help;
  void (*run)(Words);
};

constexpr Analysis Analyses[] = {
    {"heads", "finds the heads that look back for what was said before; razor_attention needs to know them",
     evaluation::analyze_heads},
    {"layers", "shows which adjacent layers resemble each other, and so whether mini_cache suits the model",
     evaluation::analyze_layers},
};

std::string help() {
  std::string text =
      "analyze: finds out about a language model what some compression policies must know\n\n"
      "usage: analyze ANALYSIS [OPTIONS]\n\n"
      "analyses, each with a --help of its own:\n";
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
