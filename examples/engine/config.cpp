#include "config.hpp"

#include <cmath>

#include "dequantize.hpp"
#include "kvc/error.hpp"

namespace engine {
namespace {

/// base^(-2i/dimensions), divided by the factors of `rope_freqs.weight` where the file has them (llama 3.1).
std::vector<float> rotary_frequencies(const GGUFFile& file, double base, std::size_t dimensions) {
  std::vector<float> frequencies(dimensions / 2), factors(dimensions / 2, 1.0f);
  if (const Tensor* tensor = file.find_tensor("rope_freqs.weight")) {
    if (tensor->columns() != factors.size())
      kvc::fail(kvc::ErrorCode::bad_file, file.path() + ": rope_freqs.weight has " + std::to_string(tensor->columns()) +
                                              " factors, expected " + std::to_string(factors.size()));
    dequantize_row(*tensor, 0, factors);
  }
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(dimensions);
    frequencies[i] = static_cast<float>(std::pow(base, exponent) / double{factors[i]});
  }
  return frequencies;
}

void check_supported(const GGUFFile& file) {
  const std::string& architecture = file.text("general.architecture");
  if (architecture != "llama")
    kvc::fail(kvc::ErrorCode::incompatible,
              file.path() + ": architecture '" + architecture + "' is not supported, expected llama");
  const std::string scaling = file.text_or("llama.rope.scaling.type", "none");
  if (scaling != "none")
    kvc::fail(kvc::ErrorCode::incompatible, file.path() + ": rotary scaling '" + scaling + "' is not supported");
  if (file.size_or("llama.expert_count", 0) != 0)
    kvc::fail(kvc::ErrorCode::incompatible, file.path() + ": mixtures of experts are not supported");
}

void check_sizes(const GGUFFile& file, const Config& config) {
  auto require = [&](bool holds, const std::string& sentence) {
    if (!holds) kvc::fail(kvc::ErrorCode::bad_file, file.path() + ": " + sentence);
  };
  require(config.layers > 0 && config.layers <= 1024, "the number of layers is " + std::to_string(config.layers));
  require(config.query_heads > 0 && config.kv_heads > 0 && config.query_heads % config.kv_heads == 0,
          std::to_string(config.query_heads) + " query heads are no multiple of " + std::to_string(config.kv_heads) +
              " KV heads");
  require(config.head_dim > 0 && config.head_dim % 8 == 0, "the head size is " + std::to_string(config.head_dim));
  require(config.hidden > 0 && config.ffn > 0 && config.vocabulary > 0 && config.context > 0, "a size is zero");
  require(2 * config.inv_freq.size() <= config.head_dim, "more rotated dimensions than a head has");
  require(std::isfinite(config.rope_base) && config.rope_base > 0, "the rotary base is not positive");
  require(std::isfinite(config.rms_epsilon) && config.rms_epsilon > 0, "the norm's epsilon is not positive");
}

}  // namespace

Config read_config(const GGUFFile& file) {
  check_supported(file);
  Config config;
  config.name = file.text_or("general.name", "llama");
  config.layers = file.size("llama.block_count");
  config.hidden = file.size("llama.embedding_length");
  config.ffn = file.size("llama.feed_forward_length");
  config.context = file.size("llama.context_length");
  config.query_heads = file.size("llama.attention.head_count");
  config.kv_heads = file.size_or("llama.attention.head_count_kv", config.query_heads);
  const std::size_t divided = config.query_heads ? config.hidden / config.query_heads : 0;
  config.head_dim = file.size_or("llama.attention.key_length", divided);
  config.rope_base = static_cast<float>(file.number_or("llama.rope.freq_base", 10000.0));
  config.rms_epsilon = static_cast<float>(file.number("llama.attention.layer_norm_rms_epsilon"));
  config.vocabulary = file.tensor("token_embd.weight").rows();
  config.tied = file.find_tensor("output.weight") == nullptr;
  const std::size_t rotated = file.size_or("llama.rope.dimension_count", config.head_dim);
  config.inv_freq = rotary_frequencies(file, double{config.rope_base}, rotated);
  check_sizes(file, config);
  return config;
}

}  // namespace engine
