#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kvc/executor.hpp"
#include "kvc/shape.hpp"

/// A cache that keeps every key and value in f32 and attends in the plainest way: what the model is checked with apart
/// from kvc's own caches. One sequence.
class DenseAttention {
 public:
  DenseAttention(kvc::CacheShape shape, kvc::Executor& executor)
      : shape_(std::move(shape)), executor_(&executor), keys_(shape_.layers), values_(shape_.layers) {}

  void operator()(std::size_t layer, const kvc::Tokens& tokens, kvc::Rows<float> out) {
    std::vector<float>& keys = keys_[layer];
    std::vector<float>& values = values_[layer];
    const std::size_t width = shape_.kv_heads * shape_.head_dim, before = keys.size() / width;
    for (std::size_t t = 0; t < tokens.k.count; ++t) {
      keys.insert(keys.end(), tokens.k[t].begin(), tokens.k[t].end());
      values.insert(values.end(), tokens.v[t].begin(), tokens.v[t].end());
    }
    executor_->parallel_for(tokens.q.count * shape_.query_heads, [&](std::size_t index) {
      const std::size_t token = index / shape_.query_heads, head = index % shape_.query_heads;
      attend(tokens.q[token].data() + head * shape_.head_dim, before + token + 1, head, keys, values,
             out[token].data() + head * shape_.head_dim);
    });
  }

 private:
  void attend(const float* q, std::size_t count, std::size_t head, const std::vector<float>& keys,
              const std::vector<float>& values, float* out) const {
    const std::size_t width = shape_.kv_heads * shape_.head_dim, dim = shape_.head_dim;
    const std::size_t offset = head / shape_.group() * dim;
    thread_local std::vector<float> weights;
    weights.resize(count);
    float largest = -INFINITY;
    for (std::size_t i = 0; i < count; ++i) {
      float sums[8] = {};
      const float* key = keys.data() + i * width + offset;
      for (std::size_t d = 0; d < dim; d += 8)
        for (std::size_t j = 0; j < 8; ++j) sums[j] += q[d + j] * key[d + j];
      float sum = 0;
      for (const float part : sums) sum += part;
      weights[i] = sum * shape_.logit_scale();
      largest = std::max(largest, weights[i]);
    }
    double total = 0;
    for (float& weight : weights) total += double{weight = std::exp(weight - largest)};
    std::fill(out, out + dim, 0.0f);
    for (std::size_t i = 0; i < count; ++i) {
      const float weight = weights[i] / static_cast<float>(total);
      const float* value = values.data() + i * width + offset;
      for (std::size_t d = 0; d < dim; ++d) out[d] += weight * value[d];
    }
  }

  kvc::CacheShape shape_;
  kvc::Executor* executor_;
  std::vector<std::vector<float>> keys_, values_;
};
