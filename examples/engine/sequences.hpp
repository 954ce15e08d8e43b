#pragma once
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/error.hpp"
#include "model.hpp"

namespace engine {

struct PrefillOptions {
  kvc::Position first = 0;  ///< position of the first token
  /// Tokens per pass over the layers. 0: all in one pass, which needs about 10 KB of workspace per token for SmolLM2.
  std::size_t chunk = 0;
  bool last_chunk = true;  ///< false: more of this prompt follows, so policies do not act yet
};

/// Runs a prompt through the model once and feeds every layer's queries, keys and values to all `caches`. The attention
/// is that of caches[0]; while a prompt is read it is full attention whatever the policy, so one is enough.
/// `logits`: [0, 1 or all tokens, vocabulary], as in Model::forward; all tokens only without chunks.
inline void prefill(const Model& model, std::span<kvc::CacheCore* const> caches, std::span<const int> tokens,
                    kvc::Rows<float> logits, Workspace& workspace, const PrefillOptions& options = {}) {
  if (caches.empty()) kvc::fail(kvc::ErrorCode::invalid_argument, "prefill: no cache to feed");
  if (tokens.size() + static_cast<std::size_t>(options.first) > model.config().context)
    kvc::fail(kvc::ErrorCode::invalid_argument, "a prompt of " + std::to_string(tokens.size()) +
                                                    " tokens from position " + std::to_string(options.first) +
                                                    " is longer than the model's context of " +
                                                    std::to_string(model.config().context));
  const std::size_t chunk = options.chunk == 0 ? tokens.size() : options.chunk;
  if (logits.count > 1 && chunk < tokens.size())
    kvc::fail(kvc::ErrorCode::invalid_argument, "prefill in chunks gives the logits of the last token only");
  std::vector<kvc::Position> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), options.first);
  for (std::size_t begin = 0; begin < tokens.size(); begin += chunk) {
    const std::size_t count = std::min(chunk, tokens.size() - begin);
    const bool last = begin + count == tokens.size();
    auto feed = [&](std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
      for (kvc::CacheCore* cache : caches)
        cache->prefill(layer, rows, cache == caches[0] ? out : kvc::Rows<float>(), last && options.last_chunk);
    };
    model.forward(tokens.subspan(begin, count), std::span(positions).subspan(begin, count), feed,
                  last ? logits : kvc::Rows<float>(), workspace);
  }
}

inline void prefill(const Model& model, kvc::CacheCore& cache, std::span<const int> tokens, kvc::Rows<float> logits,
                    Workspace& workspace, const PrefillOptions& options = {}) {
  kvc::CacheCore* const caches[] = {&cache};
  prefill(model, caches, tokens, logits, workspace, options);
}

/// One token of every sequence, in step: row b of `tokens`, `positions` and `logits` belongs to caches[b], and the
/// weights are read once for all of them. `logits`: [0 or caches, vocabulary].
inline void step(const Model& model, std::span<kvc::CacheCore* const> caches, std::span<const int> tokens,
                 std::span<const kvc::Position> positions, kvc::Rows<float> logits, Workspace& workspace) {
  if (tokens.size() != caches.size())
    kvc::fail(kvc::ErrorCode::shape_mismatch,
              "step: " + std::to_string(tokens.size()) + " tokens for " + std::to_string(caches.size()) + " caches");
  if (logits.count != 0 && logits.count != caches.size())
    kvc::fail(kvc::ErrorCode::shape_mismatch, "step: " + std::to_string(logits.count) + " rows of logits for " +
                                                  std::to_string(caches.size()) + " caches");
  auto attend = [&](std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
    kvc::decode_batch(caches, layer, rows, out, model.executor());
  };
  model.forward(tokens, positions, attend, logits, workspace);
}

}  // namespace engine
