#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "gguf.hpp"

namespace engine {

/// The numbers of a llama-architecture model.
struct Config {
  std::string name;
  std::size_t layers = 0, query_heads = 0, kv_heads = 0, head_dim = 0;
  std::size_t hidden = 0, ffn = 0, vocabulary = 0;
  std::size_t context = 0;  ///< longest sequence, tokens
  float rope_base = 10000.0f, rms_epsilon = 1e-5f;
  bool tied = false;            ///< the output head is the embedding
  std::vector<float> inv_freq;  ///< rotary: pair (2i, 2i+1) of position m turns by m * inv_freq[i]

  std::size_t query_width() const { return query_heads * head_dim; }
  std::size_t kv_width() const { return kv_heads * head_dim; }
};

/// Reads the metadata and checks it before any memory is taken by it. Throws kvc::Error: bad_file for entries that are
/// absent, impossible, or at odds with the tensors; incompatible for an architecture or a rotary scaling other than the
/// plain llama one, and for shapes that kvc's caches do not take.
Config read_config(const GGUFFile& file);

}  // namespace engine
