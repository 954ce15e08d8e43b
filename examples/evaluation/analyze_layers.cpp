#include "analyze_layers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "arguments.hpp"
#include "engine/model.hpp"
#include "engine/sequences.hpp"
#include "engine/thread_pool.hpp"
#include "files.hpp"
#include "kvc/error.hpp"
#include "kvc/kvc.hpp"

namespace evaluation {
namespace {

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = {
      {"--model", "FILE", "", "the language model, a GGUF file of the llama architecture"},
      {"--text", "FILE", "", "a plain text of the kind that the model will read"},
      {"--offset", "TOKENS", "4096", "where the stretch of text that is read starts"},
      {"--tokens", "N", "1024", "how long it is"},
      {"--threads", "N", "0", "0: one per processor"},
      {"--help", "", "", "show this"},
  };
  return all;
}

/// The stretch of the text that the options ask for.
std::vector<int> read_tokens(const LayersOptions& options, const engine::Model& model) {
  const std::string text = read_file(options.text, "--text");
  const std::vector<int> ids = model.tokenizer().encode(text, engine::SpecialTokens::as_text);
  if (ids.size() < options.offset + options.tokens)
    kvc::fail(kvc::ErrorCode::invalid_argument,
              fmt::format("--text has {} tokens, too few for --tokens {} from --offset {}", ids.size(), options.tokens,
                          options.offset));
  const auto first = ids.begin() + static_cast<std::ptrdiff_t>(options.offset);
  return {first, first + static_cast<std::ptrdiff_t>(options.tokens)};
}

}  // namespace

LayersOptions read_layers_options(std::span<const char* const> words) {
  const Arguments arguments(words, known_options());
  LayersOptions options{.help = arguments.has("--help")};
  if (options.help) return options;
  options.model = arguments.text("--model");
  options.text = arguments.text("--text");
  options.offset = arguments.count("--offset", 0, 1'000'000'000);
  options.tokens = arguments.count("--tokens", 2, 1'000'000'000);
  options.threads = arguments.count("--threads", 0, 1024);
  if (options.model.empty()) kvc::fail(kvc::ErrorCode::invalid_argument, "--model FILE is missing");
  if (options.text.empty())
    kvc::fail(kvc::ErrorCode::invalid_argument, "--text FILE is missing; any plain text will do");
  return options;
}

std::string layers_help() {
  return "analyze layers: how much the keys and values of adjacent layers resemble each other\n\n"
         "usage: analyze layers --model FILE --text FILE [OPTIONS]\n\n" +
         option_table(known_options());
}

void analyze_layers(std::span<const char* const> words) {
  const LayersOptions options = read_layers_options(words);
  if (options.help) return fmt::print("{}", layers_help());
  engine::ThreadPool pool(options.threads);
  const engine::Model model = engine::Model::load(options.model, pool);
  const std::vector<int> ids = read_tokens(options, model);
  kvc::KVCache cache(model.cache_shape(), kvc::Full{}, {.dense = {kvc::Scalar::f32}, .executor = &pool});
  engine::Workspace workspace;
  engine::prefill(model, cache, ids, {}, workspace);
}

}  // namespace evaluation
