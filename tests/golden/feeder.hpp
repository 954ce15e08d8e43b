#pragma once
#include <kvc/cache/kv_cache.hpp>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "golden/case.hpp"

namespace golden {

inline kvc::HeadId head_id(std::size_t head) {
  return {0, static_cast<std::uint32_t>(head)};
}

/// Everything in float, as the reference runs were.
inline kvc::CacheOptions in_float() {
  return {.dense = {kvc::Scalar::f32}, .arithmetic = kvc::Arithmetic::exact};
}

/// [tokens, heads * dim], as the cache writes outputs, as [heads, tokens, dim], as most tensors lie.
std::vector<float> by_head(std::span<const float> by_token, std::size_t heads, std::size_t dim);

/// Rows of one head, in slot order.
struct HeadRows {
  std::vector<float> keys, values;
};
/// What a cache holds, decoded.
HeadRows gathered(const kvc::CacheCore& cache, std::size_t head);

/// The queries, keys and values of a case, fed to a cache of one layer through its public interface.
class Feeder {
 public:
  /// The tensors to feed: [heads, tokens, dim].
  struct Names {
    std::string q = "q", k = "k", v = "v";
  };
  /// `repeat`: keys and values are copied to all query heads first, as code without grouped queries does; every query
  /// head then has a cache of its own.
  Feeder(const Case& golden, const Names& names, bool repeat = false);

  const kvc::CacheShape& shape() const { return shape_; }
  std::size_t tokens() const { return k_.size() / (shape_.kv_heads * shape_.head_dim); }
  /// Floats of one token's output.
  std::size_t width() const { return shape_.query_heads * shape_.values_dim(); }

  /// Rotates queries and keys at their index in the text, as an engine does, and gives the shape the table to undo it.
  void rotate(double base);

  /// Feeds tokens [begin, begin + count) as a prompt in parts of `chunk`. Returns the outputs [count, width()].
  std::vector<float> prompt(kvc::CacheCore& cache, std::size_t begin, std::size_t count, std::size_t chunk) const;
  /// One generated token. Returns its output [width()].
  std::vector<float> step(kvc::CacheCore& cache, std::size_t token) const;

  /// What `cache` holds of a head. A row must be bitwise the row that was fed for its position, or it becomes NaN;
  /// keys come back as they were before rotate(), for reference code that rotates late stores those.
  HeadRows stored(const kvc::CacheCore& cache, std::size_t head) const;

 private:
  kvc::Tokens rows(std::size_t begin, std::size_t count) const;

  kvc::CacheShape shape_;
  std::vector<float> q_, k_, v_, unrotated_k_;
};

}  // namespace golden
