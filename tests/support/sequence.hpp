#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/all_policies.hpp"
#include "support/random_tokens.hpp"

namespace support {

/// Tokens, or room for outputs, of each layer.
using TokensOfLayer = std::function<kvc::Tokens(std::size_t layer)>;
using RowsOfLayer = std::function<kvc::Rows<float>(std::size_t layer)>;

/// Whether a policy of the cache, or one inside it, wants to see a probe before it acts.
bool wants_probe(const kvc::CacheCore& cache);
/// Asks for these tokens about all that was seen, and ends the prompt.
void probe_and_compress(kvc::CacheCore& cache, const TokensOfLayer& tokens);
/// A whole prompt. Policies that want a probe are asked for its tokens once more before it ends.
void prefill_whole(kvc::CacheCore& cache, const TokensOfLayer& tokens, const RowsOfLayer& out);

/// A cache under a policy, and everything that it answered.
class Sequence {
 public:
  using Cache = kvc::KVCache<kvc::AnyPolicy>;

  Sequence(const kvc::CacheShape& shape, const std::string& policy, const kvc::CacheOptions& options = {});
  /// A sequence that starts as this one is now; it has answered nothing yet.
  Sequence fork() const;

  Cache& cache() { return *cache_; }
  const Cache& cache() const { return *cache_; }
  const kvc::CacheShape& shape() const { return cache_->shape(); }

  /// Tokens [first, first + count) of a text as a prompt in parts of `chunk`.
  void prefill(const LayeredTokens& text, std::size_t first, std::size_t count, std::size_t chunk);
  void prefill(const LayeredTokens& text, std::size_t first, std::size_t count) { prefill(text, first, count, count); }
  /// Tokens [first, first + count) of a text one by one.
  void decode(const LayeredTokens& text, std::size_t first, std::size_t count);

  /// Every output so far, layer by layer.
  const std::vector<std::vector<float>>& answers() const { return answers_; }
  /// The positions of all heads, layer-major.
  std::vector<std::vector<kvc::Position>> positions() const;
  /// Keys and values of all heads, layer-major.
  std::vector<std::vector<float>> rows() const;
  /// Slots that a head may hold now; Unlimited if no stage says.
  std::size_t limit(kvc::HeadId id) const;

  static std::vector<kvc::HeadId> heads(const kvc::CacheShape& shape);

 private:
  explicit Sequence(std::unique_ptr<Cache> cache);
  void note(std::size_t layer, const Outputs& out);

  std::unique_ptr<Cache> cache_;
  std::vector<std::vector<float>> answers_;
};

}  // namespace support
