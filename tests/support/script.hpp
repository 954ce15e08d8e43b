#pragma once
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "kvc/cache/core.hpp"
#include "support/random_tokens.hpp"

/// A script of calls that goes through everything a cache does, and a picture of a cache by which two are compared.
namespace support {

/// What the script works on: sequences, the newest last.
struct World {
  std::vector<kvc::CacheCore> caches;
  std::vector<float> out;  ///< what the last call answered, in room for the longest one

  /// One sequence under a policy; room for forks and for the answers to `tokens` tokens.
  World(const kvc::CacheShape& shape, const kvc::Stages& stages, const kvc::CacheOptions& options, std::size_t tokens);
  kvc::CacheCore& cache() { return caches.back(); }
  kvc::Rows<float> room(std::size_t count);
};

struct Step {
  std::string name;
  std::function<void(World&)> run;  ///< one call
};

/// A prompt in parts, a second prompt, decoded tokens until layers merge and rows are sealed, forks, drafts, a probe, truncation,
/// compress(), make_room(), batches, clear() and a beginning anew. `compresses`: whether compress() may be called after a prompt.
/// `text` and `executor` must outlive the steps; the executor runs batches.
std::vector<Step> whole_script(const LayeredTokens& text, kvc::Executor& executor, bool compresses);

/// Everything that a cache says about itself but how much memory it has at hand: two caches with the same picture and the same
/// answers to what follows are the same.
struct Picture {
  std::vector<std::size_t>
      numbers;              ///< of each head the positions, then Stats: seen, slots, dead, payload, dense_bytes
  std::vector<float> rows;  ///< keys and values
  std::vector<unsigned char> slots;  ///< of the library's policies

  friend bool operator==(const Picture&, const Picture&) = default;
};
Picture picture_of(const kvc::CacheCore& cache);
std::vector<Picture> pictures_of(const World& world);
/// What differs first between two lists of pictures, in words; empty where nothing does.
std::string difference(const std::vector<Picture>& got, const std::vector<Picture>& expected);

}  // namespace support
