#pragma once
#include <cstddef>
#include <span>
#include <string>

namespace evaluation {

/// What `analyze layers` was asked to do.
struct LayersOptions {
  bool help = false;
  std::string model, text;  ///< paths
  std::size_t offset = 0, tokens = 0, threads = 0;
};

/// Reads the words after `analyze layers`. Throws kvc::Error for anything that cannot be meant.
LayersOptions read_layers_options(std::span<const char* const> words);

std::string layers_help();

/// Runs a text through a model and prints how much the keys and values of adjacent layers resemble each other, whether
/// merging them (mini_cache) suits the model, and the parameter for the pairs that suit best.
void analyze_layers(std::span<const char* const> words);

}  // namespace evaluation
