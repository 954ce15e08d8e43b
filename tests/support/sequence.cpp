#include "support/sequence.hpp"

#include <algorithm>

namespace support {

bool wants_probe(const kvc::CacheCore& cache) {
  return std::ranges::any_of(cache.stages(), [](const auto& stage) { return kvc::needs_probe(*stage); });
}

void probe_and_compress(kvc::CacheCore& cache, const TokensOfLayer& tokens) {
  const auto end = static_cast<kvc::Position>(cache.stats(kvc::HeadId{}).seen);
  for (std::size_t layer = 0; layer < cache.shape().layers; ++layer) cache.probe(layer, tokens(layer), {}, 0, end);
  cache.compress();
}

void prefill_whole(kvc::CacheCore& cache, const TokensOfLayer& tokens, const RowsOfLayer& out) {
  const bool probes = wants_probe(cache);
  for (std::size_t layer = 0; layer < cache.shape().layers; ++layer)
    cache.prefill(layer, tokens(layer), out(layer), !probes);
  if (probes) probe_and_compress(cache, tokens);
}

Sequence::Sequence(const kvc::CacheShape& shape, const std::string& policy, const kvc::CacheOptions& options)
    : Sequence(std::make_unique<Cache>(shape, kvc::AnyPolicy::parse(policy), options)) {}
Sequence::Sequence(std::unique_ptr<Cache> cache) : cache_(std::move(cache)), answers_(cache_->shape().layers) {}

Sequence Sequence::fork() const {
  return Sequence(std::unique_ptr<Cache>(new Cache(cache_->fork())));
}

void Sequence::prefill(const LayeredTokens& text, std::size_t first, std::size_t count, std::size_t chunk) {
  const bool probes = wants_probe(*cache_);
  for (std::size_t at = first; at < first + count; at += chunk) {
    const std::size_t part = std::min(chunk, first + count - at);
    for (std::size_t layer = 0; layer < shape().layers; ++layer) {
      Outputs out(shape(), part);
      cache_->prefill(layer, text.tokens(layer, at, part), out.rows(0, part), at + part == first + count && !probes);
      note(layer, out);
    }
  }
  if (probes) probe_and_compress(*cache_, [&](std::size_t layer) { return text.tokens(layer, first, count); });
}

void Sequence::decode(const LayeredTokens& text, std::size_t first, std::size_t count) {
  for (std::size_t at = first; at < first + count; ++at)
    for (std::size_t layer = 0; layer < shape().layers; ++layer) {
      Outputs out(shape(), 1);
      cache_->decode(layer, text.tokens(layer, at, 1), out.rows(0, 1));
      note(layer, out);
    }
}

std::vector<std::vector<kvc::Position>> Sequence::positions() const {
  std::vector<std::vector<kvc::Position>> all;
  for (const kvc::HeadId id : heads(shape())) all.push_back(cache_->positions(id));
  return all;
}

std::vector<std::vector<float>> Sequence::rows() const {
  std::vector<std::vector<float>> all;
  for (const kvc::HeadId id : heads(shape())) {
    const std::size_t slots = cache_->positions(id).size(), k = shape().head_dim, v = shape().values_dim();
    std::vector<float>& copy = all.emplace_back(slots * (k + v));
    cache_->gather(id, {copy.data(), slots, k}, {copy.data() + slots * k, slots, v});
  }
  return all;
}

std::size_t Sequence::limit(kvc::HeadId id) const {
  std::size_t least = kvc::Unlimited;
  for (const auto& stage : cache_->stages())
    least = std::min(least, stage->budget(id, cache_->stats(id).seen, shape()));
  return least;
}

std::vector<kvc::HeadId> Sequence::heads(const kvc::CacheShape& shape) {
  std::vector<kvc::HeadId> all;
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head) all.push_back({layer, head});
  return all;
}

void Sequence::note(std::size_t layer, const Outputs& out) {
  answers_[layer].insert(answers_[layer].end(), out.values().begin(), out.values().end());
}

}  // namespace support
