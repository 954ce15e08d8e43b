#include "repeat_probe.hpp"

#include <algorithm>

namespace evaluation {
namespace {

/// How much of the piece before is quoted, so that the model knows where the next one starts.
constexpr std::size_t QuotedTokens = 8;

void append(std::vector<int>& ids, std::span<const int> more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

}  // namespace

std::vector<RepeatProbe> repeat_probes(std::span<const int> prompt, const engine::Tokenizer& tokenizer,
                                       std::size_t piece) {
  const auto encode = [&](const char* text) { return tokenizer.encode(text, engine::SpecialTokens::as_text); };
  std::vector<RepeatProbe> probes;
  for (std::size_t begin = 0; begin < prompt.size(); begin += piece) {
    const std::size_t end = std::min(prompt.size(), begin + piece);
    RepeatProbe probe{{}, static_cast<kvc::Position>(begin), static_cast<kvc::Position>(end)};
    if (begin == 0) {
      probe.ids = encode("\n\nRepeat the previous context exactly.");
    } else {
      probe.ids = encode("\n\nRepeat the part of the previous context exactly, starting with");
      const std::size_t quoted = std::min(QuotedTokens, begin);
      append(probe.ids, prompt.subspan(begin - quoted, quoted));
    }
    append(probe.ids, encode("\n"));
    append(probe.ids, prompt.subspan(begin, end - begin));
    probes.push_back(std::move(probe));
  }
  return probes;
}

}  // namespace evaluation
