#pragma once
#include <cstddef>
#include <random>
#include <vector>

#include "kvc/kvc.hpp"

namespace bench {

inline std::vector<float> normal_floats(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

/// Random queries, keys and values of one layer, `piece` tokens that repeat: the text of a benchmark is as long as asked for,
/// and a million tokens need no more memory than a few thousand.
class Sequence {
 public:
  Sequence(const kvc::CacheShape& shape, std::size_t piece)
      : shape_(shape),
        piece_(piece),
        q_(normal_floats(piece * query_width(), 1)),
        k_(normal_floats(piece * key_width(), 2)),
        v_(normal_floats(piece * value_width(), 3)) {}

  std::size_t piece() const { return piece_; }
  std::size_t query_width() const { return shape_.query_heads * shape_.head_dim; }
  std::size_t key_width() const { return shape_.kv_heads * shape_.head_dim; }
  std::size_t value_width() const { return shape_.kv_heads * shape_.values_dim(); }

  /// Tokens [first, first + count) of one piece; `first` wraps.
  kvc::Tokens tokens(std::size_t first, std::size_t count) const {
    first %= piece_ - count + 1;
    return {.q = {q_.data() + first * query_width(), count, query_width()},
            .k = {k_.data() + first * key_width(), count, key_width()},
            .v = {v_.data() + first * value_width(), count, value_width()}};
  }
  kvc::ConstRows query(std::size_t token) const { return tokens(token, 1).q; }

  /// Feeds `count` tokens to the cache's only layer as one prompt or, if they are more than a piece, several.
  void fill(kvc::CacheCore& cache, std::size_t count) const {
    for (std::size_t done = 0; done < count; done += piece_)
      cache.prefill(0, tokens(0, std::min(piece_, count - done)), {});
  }

 private:
  kvc::CacheShape shape_;
  std::size_t piece_;
  std::vector<float> q_, k_, v_;
};

}  // namespace bench
