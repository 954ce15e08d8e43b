#include "analyze_layers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "arguments.hpp"
#include "command.hpp"
#include "engine/model.hpp"
#include "engine/sequences.hpp"
#include "engine/thread_pool.hpp"
#include "files.hpp"
#include "kvc/analysis/layer_similarity_table.hpp"
#include "kvc/kvc.hpp"
#include "kvc/named/any_policy.hpp"
#include "progress.hpp"

namespace evaluation {
namespace {

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = {
      {"--model", "FILE", "", "the language model: a GGUF file of the llama architecture"},
      {"--text", "FILE", "", "a plain text of the kind that the model will read"},
      {"--offset", "TOKENS", "4096", "where in the text the model starts to read"},
      {"--tokens", "N", "1024", "how much of the text it reads"},
      {"--t", "T", "0.6", "where the shared direction lies between the lower layer's (0) and the upper layer's (1)"},
      {"--error", "E", "",
       "the largest error that merging a chosen pair may cause; left out: as much as 2-bit KIVI causes on this text"},
      {"--pairs", "N", "0", "how many pairs of layers to choose at most; 0: all that --error allows"},
      {"--heads", "", "", "show a line for every KV head too"},
      {"--threads", "N", "0", "how many threads compute; 0: one per processor"},
      {"--help", "", "", "show this"},
  };
  return all;
}

double number(const Arguments& arguments, const char* name, double most) {
  const std::string& text = arguments.text(name);
  const auto value = kvc::TextOf<double>::read(text);
  if (!value || *value < 0 || *value > most)
    kvc::fail(kvc::ErrorCode::invalid_argument,
              fmt::format("{} takes a number from 0 to {}, got '{}'", name, most, text));
  return *value;
}

/// The stretch of the text that the options ask for.
std::vector<int> read_tokens(const LayersOptions& options, const std::string& text, const engine::Model& model) {
  const std::vector<int> ids = model.tokenizer().encode(text, engine::SpecialTokens::as_text);
  if (options.offset > ids.size() || options.tokens > ids.size() - options.offset)
    kvc::fail(kvc::ErrorCode::invalid_argument,
              fmt::format("--text has {} tokens, too few for --tokens {} from --offset {}", ids.size(), options.tokens,
                          options.offset));
  const auto first = ids.begin() + static_cast<std::ptrdiff_t>(options.offset);
  return {first, first + static_cast<std::ptrdiff_t>(options.tokens)};
}

/// RMS of the difference over RMS of the rows, of keys or of values, whichever is more.
double difference(const kvc::CacheCore& exact, const kvc::CacheCore& rounded) {
  double keys = 0, values = 0, all_keys = 0, all_values = 0;
  for (std::uint32_t layer = 0; layer < exact.shape().layers; ++layer)
    for (std::uint32_t head = 0; head < exact.shape().kv_heads; ++head) {
      const kvc::EigenHead a = kvc::gather(exact, {layer, head}), b = kvc::gather(rounded, {layer, head});
      keys += double((a.keys - b.keys).squaredNorm());
      values += double((a.values - b.values).squaredNorm());
      all_keys += double(a.keys.squaredNorm());
      all_values += double(a.values.squaredNorm());
    }
  return std::sqrt(std::max(keys / all_keys, values / all_values));
}

}  // namespace

LayersOptions read_layers_options(std::span<const char* const> words) {
  const Arguments arguments(words, known_options());
  LayersOptions options;
  options.help = arguments.has("--help");
  if (options.help) return options;
  options.model = arguments.text("--model");
  options.text = arguments.text("--text");
  options.offset = arguments.count("--offset", 0, 1'000'000'000);
  options.tokens = arguments.count("--tokens", 2, 1'000'000'000);
  options.t = number(arguments, "--t", 1);
  if (arguments.has("--error")) options.error = number(arguments, "--error", 2);
  options.pairs = arguments.count("--pairs", 0, 1000);
  options.heads = arguments.has("--heads");
  options.threads = arguments.count("--threads", 0, 1024);
  if (options.model.empty()) kvc::fail(kvc::ErrorCode::invalid_argument, "--model FILE is missing");
  if (options.text.empty())
    kvc::fail(kvc::ErrorCode::invalid_argument, "--text FILE is missing; any plain text will do");
  return options;
}

std::string layers_help() {
  return "analyze layers: how much the keys and values of adjacent layers resemble each other, and so whether "
         "mini_cache,\n"
         "which lets such layers share their directions, suits the model\n\n"
         "usage: analyze layers --model FILE --text FILE [OPTIONS]\n\n" +
         option_table(known_options());
}

std::string layers_verdict(std::span<const kvc::LayerSimilarity> report, double largest_error,
                           const std::string& yardstick, std::size_t most) {
  if (report.empty()) return "mini_cache has nothing to merge in a model of one layer.\n";
  if (most == 0) most = report.size();
  const auto text = [](const std::vector<kvc::LayerPair>& pairs) {
    return "mini_cache:pairs=" + kvc::TextOf<std::vector<kvc::LayerPair>>::write(pairs);
  };
  const auto best = std::ranges::min_element(report, {}, &kvc::LayerSimilarity::error);
  const std::string threshold = fmt::format("{:.2f}, {}", largest_error, yardstick);
  const std::vector<kvc::LayerPair> chosen = kvc::choose_pairs(report, largest_error, most);
  if (!chosen.empty())
    return fmt::format(
        "mini_cache suits {} of the {} layers: merging their {} pairs changes keys and values by at most the limit "
        "({}).\n\n  {}\n",
        2 * chosen.size(), report.size() + 1, chosen.size(), threshold, text(chosen));
  const std::size_t tried = std::min<std::size_t>(most, std::max<std::size_t>(1, (report.size() + 1) / 4));
  return fmt::format(
      "mini_cache does not suit this model: merging even its most similar layers, {} and {} (mean cosine of keys "
      "{:.2f}, "
      "of values {:.2f}), changes them by {:.2f} of their size, above the limit ({}).\nThe pairs that it would hurt "
      "least, to try all the same:\n\n  {}\n",
      best->pair.below, best->pair.above, best->all.keys.mean_cosine, best->all.values.mean_cosine, best->error(),
      threshold, text(kvc::choose_pairs(report, std::numeric_limits<double>::max(), tried)));
}

void analyze_layers(std::span<const char* const> words) {
  const LayersOptions options = read_layers_options(words);
  if (options.help) return print(layers_help());
  const std::string text = read_file(options.text, "--text");
  engine::ThreadPool pool(options.threads);
  const engine::Model model = engine::Model::load(options.model, pool);
  const std::vector<int> ids = read_tokens(options, text, model);

  const kvc::CacheOptions exact{.dense = {kvc::Scalar::f32}, .executor = &pool};
  kvc::KVCache full(model.cache_shape(), kvc::Full{}, exact);
  kvc::KVCache rounded(model.cache_shape(), kvc::KIVI{.bits = 2, .residual = 32}, exact);
  kvc::CacheCore* const caches[] = {&full, &rounded};
  Progress progress;
  progress.begin(fmt::format("{} tokens of {}", ids.size(), options.text));
  engine::Workspace workspace;
  engine::prefill(model, caches, ids, {}, workspace);
  progress.step("comparing layers");

  const std::vector<kvc::LayerSimilarity> report = kvc::layer_similarity(full, options.t);
  const double limit = options.error ? *options.error : difference(full, rounded);
  print(kvc::similarity_table(report, options.heads) + "\n");
  print(
      "cosine    between the two layers' rows of a token: mean, median, and what 5 % of the tokens fall below\n"
      "distance  mean angle / pi; 0.5: unrelated\n"
      "error     what merging does to the rows of both layers: RMS of the difference over RMS of the rows\n\n");
  print(layers_verdict(report, limit, options.error ? "--error" : "what 2-bit KIVI does here", options.pairs));
}

}  // namespace evaluation
