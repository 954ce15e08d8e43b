#include "config.hpp"

#include <cmath>
#include <limits>

#include "dequantize.hpp"
#include "kvc/error.hpp"
#include "kvc/shape.hpp"

namespace engine {
namespace {

/// base^(-2i/dimensions), divided by the factors of `rope_freqs.weight` where the file has them (llama 3.1). The caller
/// has checked `dimensions`.
std::vector<float> rotary_frequencies(const GGUFFile& file, double base, std::size_t dimensions) {
  std::vector<float> frequencies(dimensions / 2), factors(dimensions / 2, 1.0f);
  if (const Tensor* tensor = file.find_tensor("rope_freqs.weight")) {
    if (tensor->columns() != factors.size())
      kvc::fail(kvc::ErrorCode::bad_file, file.path() + ": rope_freqs.weight has " + std::to_string(tensor->columns()) +
                                              " factors, expected " + std::to_string(factors.size()));
    dequantize_row(*tensor, 0, factors);
    for (const float factor : factors)
      if (!(std::isfinite(factor) && factor > 0))
        kvc::fail(kvc::ErrorCode::bad_file,
                  file.path() + ": rope_freqs.weight has a factor of " + std::to_string(factor) + ", expected above 0");
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

/// Checks the numbers against each other and against the shapes of the embedding and of the first layer. The tensors lie
/// in the file, so no size that passes is beyond what the file can fill, and memory may be taken by it.
void check_sizes(const GGUFFile& file, const Config& config, std::size_t rotated) {
  auto require = [&](bool holds, const std::string& sentence) {
    if (!holds) kvc::fail(kvc::ErrorCode::bad_file, file.path() + ": " + sentence);
  };
  require(config.layers > 0 && config.layers <= 1024, "the number of layers is " + std::to_string(config.layers));
  require(config.query_heads > 0 && config.kv_heads > 0 && config.query_heads % config.kv_heads == 0,
          std::to_string(config.query_heads) + " query heads are no multiple of " + std::to_string(config.kv_heads) +
              " KV heads");
  require(config.head_dim > 0 && config.head_dim % 8 == 0, "the head size is " + std::to_string(config.head_dim));
  require(config.hidden > 0 && config.ffn > 0 && config.vocabulary > 0 && config.context > 0, "a size is zero");
  require(rotated <= config.head_dim && rotated % 2 == 0, "of the " + std::to_string(config.head_dim) +
                                                              " dimensions of a head " + std::to_string(rotated) +
                                                              " are rotated, expected an even number of them");
  constexpr std::size_t LongestContext = std::numeric_limits<kvc::Position>::max();
  require(config.context <= LongestContext, "the context is " + std::to_string(config.context) +
                                                " tokens long, expected at most " + std::to_string(LongestContext));
  require(std::isfinite(config.rope_base) && config.rope_base > 0, "the rotary base is not positive");
  require(std::isfinite(config.rms_epsilon) && config.rms_epsilon > 0, "the norm's epsilon is not positive");
  const auto require_rows = [&](const std::string& name, std::size_t columns, std::size_t rows) {
    const Tensor& tensor = file.tensor(name);
    require(tensor.columns() == columns && tensor.rows() == rows,
            "tensor " + name + " is [" + std::to_string(tensor.rows()) + ", " + std::to_string(tensor.columns()) +
                "], expected [" + std::to_string(rows) + ", " + std::to_string(columns) + "]");
  };
  require_rows("token_embd.weight", config.hidden, config.vocabulary);
  require_rows("blk.0.attn_q.weight", config.hidden, config.query_width());
  require_rows("blk.0.attn_k.weight", config.hidden, config.kv_width());
  require_rows("blk.0.ffn_gate.weight", config.hidden, config.ffn);
}

/// A model that the library's cache cannot serve is refused before its weights are read.
void check_cache(const GGUFFile& file, const Config& config) {
  kvc::CacheShape shape;
  shape.layers = config.layers;
  shape.query_heads = config.query_heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  try {
    shape.validate();
  } catch (const kvc::Error& error) {
    kvc::fail(kvc::ErrorCode::incompatible, file.path() + ": " + error.what());
  }
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
  check_sizes(file, config, rotated);
  check_cache(file, config);
  config.inv_freq = rotary_frequencies(file, double{config.rope_base}, rotated);
  return config;
}

}  // namespace engine
