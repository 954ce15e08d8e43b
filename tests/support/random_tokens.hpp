#pragma once
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "kvc/shape.hpp"

/// Tokens for caches to eat, and room for what they answer.
namespace support {

/// Random queries, keys, values and external scores of one layer. Keys have channels of unequal size and a common part, as models have
/// them, so that attention is uneven and quantization groups differ.
class RandomTokens {
 public:
  RandomTokens(const kvc::CacheShape& shape, std::size_t count, unsigned seed)
      : query_dim_(shape.query_heads * shape.head_dim),
        key_dim_(shape.kv_heads * shape.head_dim),
        value_dim_(shape.kv_heads * shape.values_dim()),
        queries_(count * query_dim_),
        keys_(count * key_dim_),
        values_(count * value_dim_),
        scores_(count * shape.kv_heads),
        kv_heads_(shape.kv_heads) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (float& x : queries_) x = 1.5f * normal(generator);
    for (std::size_t i = 0; i < keys_.size(); ++i)
      keys_[i] = normal(generator) * (i % 7 == 0 ? 2.0f : 1.0f) + (i % 5 == 0 ? 1.0f : 0.0f);
    for (float& x : values_) x = normal(generator);
    for (float& x : scores_) x = normal(generator);
  }

  /// Tokens [first, first + count).
  kvc::Tokens tokens(std::size_t first, std::size_t count) const {
    return {.q = {queries_.data() + first * query_dim_, count, query_dim_},
            .k = {keys_.data() + first * key_dim_, count, key_dim_},
            .v = {values_.data() + first * value_dim_, count, value_dim_},
            .scores = std::span(scores_).subspan(first * kv_heads_, count * kv_heads_)};
  }

 private:
  std::size_t query_dim_, key_dim_, value_dim_;
  std::vector<float> queries_, keys_, values_, scores_;
  std::size_t kv_heads_;
};

/// The same for every layer of a model: other tokens in each.
class LayeredTokens {
 public:
  LayeredTokens(const kvc::CacheShape& shape, std::size_t count, unsigned seed) {
    for (std::size_t layer = 0; layer < shape.layers; ++layer)
      layers_.emplace_back(shape, count, seed + 10000 * static_cast<unsigned>(layer));
  }
  kvc::Tokens tokens(std::size_t layer, std::size_t first, std::size_t count) const {
    return layers_[layer].tokens(first, count);
  }

  /// Tokens [first, first + count) of all layers.
  struct Slice {
    const LayeredTokens* text;
    std::size_t first, count;
    kvc::Tokens of(std::size_t layer) const { return text->tokens(layer, first, count); }
  };
  Slice slice(std::size_t first, std::size_t count) const { return {this, first, count}; }

 private:
  std::vector<RandomTokens> layers_;
};

/// Attention outputs of consecutive tokens of one layer.
class Outputs {
 public:
  Outputs(const kvc::CacheShape& shape, std::size_t count)
      : dim_(shape.query_heads * shape.values_dim()), values_(count * dim_, 12345.0f) {}

  kvc::Rows<float> rows(std::size_t first, std::size_t count) { return {values_.data() + first * dim_, count, dim_}; }
  const std::vector<float>& values() const { return values_; }
  friend bool operator==(const Outputs&, const Outputs&) = default;

 private:
  std::size_t dim_;
  std::vector<float> values_;
};

/// Choices of a random walk.
class Dice {
 public:
  explicit Dice(unsigned seed) : generator_(seed) {}
  /// A number in [0, below).
  std::size_t operator()(std::size_t below) {
    return std::uniform_int_distribution<std::size_t>(0, below - 1)(generator_);
  }
  bool chance(double probability) { return std::bernoulli_distribution(probability)(generator_); }
  std::vector<float> row(std::size_t dim) {
    std::normal_distribution<float> normal;
    std::vector<float> values(dim);
    for (float& value : values) value = normal(generator_);
    return values;
  }

 private:
  std::mt19937 generator_;
};

}  // namespace support
