#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/model.hpp"
#include "kvc/analysis/retrieval_heads.hpp"

namespace evaluation {

/// What `analyze heads` was asked to do, with its defaults.
struct HeadsOptions {
  bool help = false;
  std::string model, out;  ///< paths; no out: only print
  kvc::RepeatedBlock text = {.block = 400, .repeats = 4};
  std::uint64_t seed = 1;
  kvc::RetrievalShares shares = {};
  std::size_t threads = 0;
};

/// Reads the words after `analyze heads`. Throws kvc::Error for anything that cannot be meant.
HeadsOptions read_heads_options(std::span<const char* const> words);

/// The ids of a repeated block: BOS (without one, the id 1), then a block of random ids again and again. The same seed
/// gives the same ids on every machine.
std::vector<int> repeated_ids(const kvc::RepeatedBlock& text, std::size_t vocabulary, int bos, std::uint64_t seed);

/// Runs a repeated block through a model. Throws kvc::Error if the model's context is too short for it.
kvc::HeadScores score_heads(const engine::Model& model, const HeadsOptions& options);

/// Prints the heads that look back most and the model's table of retrieval heads, and writes the table to a file.
void analyze_heads(std::span<const char* const> words);

}  // namespace evaluation
