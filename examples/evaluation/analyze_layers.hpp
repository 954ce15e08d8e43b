#pragma once
#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {
struct LayerSimilarity;
}

namespace evaluation {

/// What `analyze layers` was asked to do.
struct LayersOptions {
  bool help = false;
  std::string model, text;                     ///< paths
  std::size_t offset = 0, tokens = 0;          ///< the stretch of the text that is read
  std::size_t pairs = 0;                       ///< to choose at most; 0: as many as do not exceed the error
  std::optional<double> error = std::nullopt;  ///< the largest that a chosen pair may cause; unset: that of 2-bit KIVI
  double t = 0;
  bool heads = false;
  std::size_t threads = 0;  ///< 0: one per processor
};

/// Reads the words after `analyze layers`. Throws kvc::Error for anything that cannot be meant.
LayersOptions read_layers_options(std::span<const char* const> words);

std::string layers_help();

/// One sentence on whether merging suits a model with this report, and the policy text for the pairs that suit, or for the
/// least bad ones. `yardstick` says where the largest error comes from.
std::string layers_verdict(std::span<const kvc::LayerSimilarity> report, double largest_error,
                           const std::string& yardstick, std::size_t most);

/// Runs a text through a model and prints how much the keys and values of adjacent layers resemble each other, whether
/// merging them (mini_cache) suits the model, and the parameter for the pairs that suit best.
void analyze_layers(std::span<const char* const> words);

}  // namespace evaluation
