#include "repeat_probe.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "kvc/error.hpp"

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

bool wants_probe(const kvc::Stages& stages) {
  return std::ranges::any_of(stages, [](const auto& stage) { return kvc::needs_probe(*stage); });
}

void check_repetition(const engine::Model& model, std::span<const int> prompt, const std::string& policy) {
  const std::size_t context = model.config().context;
  for (const RepeatProbe& asked : repeat_probes(prompt, model.tokenizer()))
    if (prompt.size() + asked.ids.size() > context)
      kvc::fail(kvc::ErrorCode::invalid_argument,
                fmt::format("{} wants to see the prompt repeated; the prompt of {} tokens and a repetition of {} are "
                            "more than the model's context of {}; ask for a smaller prompt",
                            policy, prompt.size(), asked.ids.size(), context));
}

double repeat_prompt(const engine::Model& model, std::span<kvc::CacheCore* const> caches, std::span<const int> prompt,
                     engine::Workspace& workspace) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  Clock::duration beside{};
  for (const RepeatProbe& asked : repeat_probes(prompt, model.tokenizer())) {
    std::vector<kvc::Position> positions(asked.ids.size());
    std::iota(positions.begin(), positions.end(), static_cast<kvc::Position>(prompt.size()));
    const auto ask = [&](std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
      caches[0]->probe(layer, rows, out, asked.begin, asked.end);
      const auto fed = Clock::now();
      model.executor().parallel_for(
          caches.size() - 1, [&](std::size_t i) { caches[i + 1]->probe(layer, rows, {}, asked.begin, asked.end); });
      beside += Clock::now() - fed;
    };
    model.forward(asked.ids, positions, ask, {}, workspace);
  }
  return std::chrono::duration<double>(Clock::now() - begin - beside).count();
}

}  // namespace evaluation
