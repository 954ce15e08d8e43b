#pragma once
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/cache/core.hpp"
#include "kvc/policy/pipeline.hpp"
#include "support/random_tokens.hpp"

/// What the tests of this folder do with a cache: a prompt in parts, with a probe where the policy wants one, and
/// tokens after it.
namespace literature {
using namespace kvc;

/// Four layers of two KV heads, whose keys and values are not of the same width.
inline const kvc::CacheShape Small{
    .layers = 4, .query_heads = 6, .kv_heads = 2, .head_dim = 32, .value_dim = 64, .rotary = kvc::Rotary::standard(32)};
inline constexpr std::size_t PromptTokens = 300, DecodedTokens = 20, AllTokens = PromptTokens + 3 * DecodedTokens;

/// A text for caches of `shape`.
inline const support::LayeredTokens& text() {
  static const support::LayeredTokens tokens(Small, AllTokens, 11);
  return tokens;
}

inline bool wants_probe(const kvc::CacheCore& cache) {
  for (const auto& stage : cache.stages())
    if (kvc::needs_probe(*stage)) return true;
  return false;
}

/// The whole prompt, in parts of these sizes. Policies that want a probe are asked for the prompt once more before they
/// act.
inline void feed_prompt(kvc::CacheCore& cache, const std::vector<std::size_t>& parts = {PromptTokens}) {
  const bool probes = wants_probe(cache);
  std::size_t first = 0;
  for (const std::size_t part : parts) {
    const bool ends = first + part == PromptTokens && !probes;
    for (std::size_t layer = 0; layer < Small.layers; ++layer)
      cache.prefill(layer, text().tokens(layer, first, part), {}, ends);
    first += part;
  }
  if (!probes) return;
  for (std::size_t layer = 0; layer < Small.layers; ++layer)
    cache.probe(layer, text().tokens(layer, 0, PromptTokens), {}, 0, kvc::Position(PromptTokens));
  cache.compress();
}

/// What the cache answers to `count` generated tokens from `first` on.
inline std::vector<float> decode(kvc::CacheCore& cache, std::size_t first = PromptTokens,
                                 std::size_t count = DecodedTokens) {
  std::vector<float> answers;
  for (std::size_t t = first; t < first + count; ++t)
    for (std::size_t layer = 0; layer < Small.layers; ++layer) {
      support::Outputs out(Small, 1);
      cache.decode(layer, text().tokens(layer, t, 1), out.rows(0, 1));
      answers.insert(answers.end(), out.values().begin(), out.values().end());
    }
  return answers;
}

inline std::vector<kvc::HeadId> heads() {
  std::vector<kvc::HeadId> all;
  for (std::uint32_t layer = 0; layer < Small.layers; ++layer)
    for (std::uint32_t head = 0; head < Small.kv_heads; ++head) all.push_back({layer, head});
  return all;
}

/// Keys and values of a head, row by row.
struct HeadRows {
  std::vector<float> keys, values;
  std::span<const float> key(std::size_t slot) const {
    return std::span(keys).subspan(slot * Small.head_dim, Small.head_dim);
  }
  std::span<const float> value(std::size_t slot) const {
    return std::span(values).subspan(slot * Small.value_dim, Small.value_dim);
  }
  friend bool operator==(const HeadRows&, const HeadRows&) = default;
};
inline HeadRows rows_of(const kvc::CacheCore& cache, kvc::HeadId id) {
  const std::size_t slots = cache.positions(id).size();
  HeadRows rows{std::vector<float>(slots * Small.head_dim), std::vector<float>(slots * Small.value_dim)};
  cache.gather(id, {rows.keys.data(), slots, Small.head_dim}, {rows.values.data(), slots, Small.value_dim});
  return rows;
}

/// All that a cache holds.
struct Holdings {
  std::vector<std::vector<kvc::Position>> positions;
  std::vector<HeadRows> rows;
  std::size_t payload = 0;
  friend bool operator==(const Holdings&, const Holdings&) = default;
};
inline Holdings holdings(const kvc::CacheCore& cache) {
  Holdings all;
  for (const kvc::HeadId id : heads()) {
    all.positions.push_back(cache.positions(id));
    all.rows.push_back(rows_of(cache, id));
  }
  all.payload = cache.stats().payload;
  return all;
}

/// Token `position` of the text as KV head `head` of a layer got it.
inline std::span<const float> key_at(std::size_t layer, std::size_t head, kvc::Position position) {
  return text().tokens(layer, std::size_t(position), 1).k[0].subspan(head * Small.head_dim, Small.head_dim);
}
inline std::span<const float> value_at(std::size_t layer, std::size_t head, kvc::Position position) {
  return text().tokens(layer, std::size_t(position), 1).v[0].subspan(head * Small.value_dim, Small.value_dim);
}

/// In double, the attention of query head `query` from token `from` over tokens [0, slots) of a layer.
inline std::vector<double> attention_from(std::size_t layer, std::size_t query, std::size_t from, std::size_t slots) {
  const auto row = text().tokens(layer, from, 1).q[0].subspan(query * Small.head_dim, Small.head_dim);
  const std::size_t head = query / Small.group();
  std::vector<double> weights(slots);
  double sum = 0;
  for (std::size_t slot = 0; slot < slots; ++slot) {
    const auto key = key_at(layer, head, kvc::Position(slot));
    double dot = 0;
    for (std::size_t c = 0; c < key.size(); ++c) dot += double(row[c]) * double(key[c]);
    sum += weights[slot] = std::exp(dot * double(Small.logit_scale()));
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

/// Positions of the `count` highest scores, ascending; the older of equals.
inline std::vector<kvc::Position> best_positions(const std::vector<double>& scores, std::size_t count) {
  std::vector<kvc::Position> order(scores.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = kvc::Position(i);
  std::ranges::stable_sort(order, [&](auto a, auto b) { return scores[std::size_t(a)] > scores[std::size_t(b)]; });
  order.resize(count);
  std::ranges::sort(order);
  return order;
}

}  // namespace literature
