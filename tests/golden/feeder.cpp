#include "golden/feeder.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace golden {
namespace {

/// Every head's row `copies` times side by side.
std::vector<float> repeated(const std::vector<float>& rows, std::size_t dim, std::size_t copies) {
  std::vector<float> out;
  out.reserve(rows.size() * copies);
  for (std::size_t begin = 0; begin < rows.size(); begin += dim)
    for (std::size_t copy = 0; copy < copies; ++copy)
      out.insert(out.end(), rows.begin() + std::ptrdiff_t(begin), rows.begin() + std::ptrdiff_t(begin + dim));
  return out;
}

void rotate_rows(std::vector<float>& rows, std::size_t heads, std::size_t dim, const kvc::Rotary& rotary) {
  const std::size_t half = dim / 2;
  for (std::size_t i = 0; i < rows.size() / dim; ++i)
    for (std::size_t c = 0; c < half; ++c) {
      const double angle = double(i / heads) * double(rotary.inv_freq[c]);
      float &x = rows[i * dim + c], &y = rows[i * dim + half + c];
      const double a = double(x), b = double(y);
      x = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
      y = static_cast<float>(a * std::sin(angle) + b * std::cos(angle));
    }
}

}  // namespace

std::vector<float> by_head(std::span<const float> by_token, std::size_t heads, std::size_t dim) {
  const std::size_t tokens = by_token.size() / (heads * dim);
  std::vector<float> out(by_token.size());
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t h = 0; h < heads; ++h)
      std::copy_n(by_token.data() + (t * heads + h) * dim, dim, out.data() + (h * tokens + t) * dim);
  return out;
}

Feeder::Feeder(const Case& golden, const Names& names, bool repeat)
    : q_(golden.by_token(names.q)), k_(golden.by_token(names.k)), v_(golden.by_token(names.v)) {
  const std::vector<std::size_t> q = golden.shape(names.q, 3), k = golden.shape(names.k, 3),
                                 v = golden.shape(names.v, 3);
  if (q[1] != k[1] || k[1] != v[1] || k[0] != v[0] || q[2] != k[2] || k[0] == 0 || q[0] % k[0] != 0)
    kvc::fail(kvc::ErrorCode::shape_mismatch, "q, k and v of the case do not fit each other");
  shape_ = {.query_heads = q[0], .kv_heads = k[0], .head_dim = k[2], .value_dim = v[2]};
  if (repeat) {
    k_ = repeated(k_, k[2], shape_.group());
    v_ = repeated(v_, v[2], shape_.group());
    shape_.kv_heads = shape_.query_heads;
  }
  unrotated_k_ = k_;
}

void Feeder::rotate(double base) {
  shape_.rotary = kvc::Rotary::standard(shape_.head_dim, base);
  rotate_rows(q_, shape_.query_heads, shape_.head_dim, shape_.rotary);
  rotate_rows(k_, shape_.kv_heads, shape_.head_dim, shape_.rotary);
}

kvc::Tokens Feeder::rows(std::size_t begin, std::size_t count) const {
  const std::size_t query = shape_.query_heads * shape_.head_dim, key = shape_.kv_heads * shape_.head_dim,
                    value = shape_.kv_heads * shape_.values_dim();
  return {{q_.data() + begin * query, count, query},
          {k_.data() + begin * key, count, key},
          {v_.data() + begin * value, count, value}};
}

std::vector<float> Feeder::prompt(kvc::CacheCore& cache, std::size_t begin, std::size_t count,
                                  std::size_t chunk) const {
  std::vector<float> out(count * width());
  for (std::size_t done = 0; done < count; done += chunk) {
    const std::size_t part = std::min(chunk, count - done);
    cache.prefill(0, rows(begin + done, part), {out.data() + done * width(), part, width()}, done + part == count);
  }
  return out;
}

std::vector<float> Feeder::step(kvc::CacheCore& cache, std::size_t token) const {
  std::vector<float> out(width());
  cache.decode(0, rows(token, 1), {out.data(), 1, width()});
  return out;
}

HeadRows gathered(const kvc::CacheCore& cache, std::size_t head) {
  const std::size_t slots = cache.positions(head_id(head)).size(), dim = cache.shape().head_dim,
                    value_dim = cache.shape().values_dim();
  HeadRows result{std::vector<float>(slots * dim), std::vector<float>(slots * value_dim)};
  cache.gather(head_id(head), {result.keys.data(), slots, dim}, {result.values.data(), slots, value_dim});
  return result;
}

HeadRows Feeder::stored(const kvc::CacheCore& cache, std::size_t head) const {
  const std::vector<kvc::Position> positions = cache.positions(head_id(head));
  const std::size_t dim = shape_.head_dim, value_dim = shape_.values_dim();
  HeadRows result = gathered(cache, head);
  for (std::size_t slot = 0; slot < positions.size(); ++slot) {
    const std::size_t row = static_cast<std::size_t>(positions[slot]) * shape_.kv_heads + head;
    float *key = result.keys.data() + slot * dim, *value = result.values.data() + slot * value_dim;
    if (std::equal(key, key + dim, k_.data() + row * dim))
      std::copy_n(unrotated_k_.data() + row * dim, dim, key);
    else
      std::fill_n(key, dim, std::numeric_limits<float>::quiet_NaN());
    if (!std::equal(value, value + value_dim, v_.data() + row * value_dim))
      std::fill_n(value, value_dim, std::numeric_limits<float>::quiet_NaN());
  }
  return result;
}

}  // namespace golden
