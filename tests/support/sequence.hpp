#pragma once
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "support/all_policies.hpp"
#include "support/random_tokens.hpp"

namespace support {

/// Calls check(entry) for every policy of which the invariant is promised.
template <class Check>
void for_each_policy(Invariant invariant, Check check) {
  for (const PolicyCase& entry : all_policies()) {
    if (entry.exemption(invariant)) continue;
    INFO(entry.text);
    check(entry);
  }
}

/// A cache under a policy, and everything that it answered.
class Sequence {
 public:
  using Cache = kvc::KVCache<kvc::AnyPolicy>;

  Sequence(const kvc::CacheShape& shape, const std::string& policy, const kvc::CacheOptions& options = {})
      : cache_(std::make_unique<Cache>(shape, kvc::AnyPolicy::parse(policy), options)), answers_(shape.layers) {}
  /// A sequence that starts as this one is now; it has answered nothing yet.
  Sequence fork() const { return Sequence(std::unique_ptr<Cache>(new Cache(cache_->fork()))); }

  Cache& cache() { return *cache_; }
  const Cache& cache() const { return *cache_; }
  const kvc::CacheShape& shape() const { return cache_->shape(); }

  /// Tokens [first, first + count) of a text as a prompt in parts of `chunk`.
  void prefill(const LayeredTokens& text, std::size_t first, std::size_t count, std::size_t chunk) {
    for (std::size_t at = first; at < first + count; at += chunk) {
      const std::size_t part = std::min(chunk, first + count - at);
      for (std::size_t layer = 0; layer < shape().layers; ++layer) {
        Outputs out(shape(), part);
        cache_->prefill(layer, text.tokens(layer, at, part), out.rows(0, part), at + part == first + count);
        note(layer, out);
      }
    }
  }
  void prefill(const LayeredTokens& text, std::size_t first, std::size_t count) { prefill(text, first, count, count); }
  /// Tokens [first, first + count) of a text one by one.
  void decode(const LayeredTokens& text, std::size_t first, std::size_t count) {
    for (std::size_t at = first; at < first + count; ++at)
      for (std::size_t layer = 0; layer < shape().layers; ++layer) {
        Outputs out(shape(), 1);
        cache_->decode(layer, text.tokens(layer, at, 1), out.rows(0, 1));
        note(layer, out);
      }
  }

  /// Every output so far, layer by layer.
  const std::vector<std::vector<float>>& answers() const { return answers_; }
  /// The positions of all heads, layer-major.
  std::vector<std::vector<kvc::Position>> positions() const {
    std::vector<std::vector<kvc::Position>> all;
    for (const kvc::HeadId id : heads(shape())) all.push_back(cache_->positions(id));
    return all;
  }
  /// Keys and values of all heads, layer-major.
  std::vector<std::vector<float>> rows() const {
    std::vector<std::vector<float>> all;
    for (const kvc::HeadId id : heads(shape())) {
      const std::size_t slots = cache_->positions(id).size(), k = shape().head_dim, v = shape().values_dim();
      std::vector<float>& copy = all.emplace_back(slots * (k + v));
      cache_->gather(id, {copy.data(), slots, k}, {copy.data() + slots * k, slots, v});
    }
    return all;
  }
  /// Slots that a head may hold now; Unlimited if no stage says.
  std::size_t limit(kvc::HeadId id) const {
    std::size_t least = kvc::Unlimited;
    for (const auto& stage : cache_->stages())
      least = std::min(least, stage->budget(id, cache_->stats(id).seen, shape()));
    return least;
  }

  static std::vector<kvc::HeadId> heads(const kvc::CacheShape& shape) {
    std::vector<kvc::HeadId> all;
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
      for (std::uint32_t head = 0; head < shape.kv_heads; ++head) all.push_back({layer, head});
    return all;
  }

 private:
  explicit Sequence(std::unique_ptr<Cache> cache) : cache_(std::move(cache)), answers_(cache_->shape().layers) {}
  void note(std::size_t layer, const Outputs& out) {
    answers_[layer].insert(answers_[layer].end(), out.values().begin(), out.values().end());
  }

  std::unique_ptr<Cache> cache_;
  std::vector<std::vector<float>> answers_;
};

}  // namespace support
