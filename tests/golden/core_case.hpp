#pragma once
#include <kvc/cache/kv_cache.hpp>
#include <kvc/simd/isa.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "evaluation/json.hpp"

namespace golden {

/// One case of data/golden/core/manifest.json: parameters and tensors that the authors' code produced.
class CoreCase {
 public:
  explicit CoreCase(const std::string& name) : case_(find(name)) {}

  std::size_t parameter(const std::string& name) const { return static_cast<std::size_t>(params()[name].number()); }
  bool has_parameter(const std::string& name) const { return params().has(name); }
  const std::string& word(const std::string& name) const { return params()[name].text(); }
  const evaluation::Json& params() const { return case_["params"]; }

  std::vector<std::size_t> shape(const std::string& name) const { return tensor(name)["shape"].numbers<std::size_t>(); }
  float tolerance(const std::string& name) const { return static_cast<float>(tensor(name)["suggested_tol"].number()); }
  std::vector<float> floats(const std::string& name) const { return load<float>(name, "float32"); }
  std::vector<std::int32_t> integers(const std::string& name) const { return load<std::int32_t>(name, "int32"); }

  /// A tensor [heads, tokens, dim] as the cache takes it: [tokens, heads * dim].
  std::vector<float> by_token(const std::string& name) const {
    const std::vector<std::size_t> s = shape(name);
    const std::vector<float> in = floats(name);
    std::vector<float> out(in.size());
    for (std::size_t h = 0; h < s[0]; ++h)
      for (std::size_t t = 0; t < s[1]; ++t)
        std::copy_n(in.begin() + std::ptrdiff_t((h * s[1] + t) * s[2]), s[2],
                    out.begin() + std::ptrdiff_t((t * s[0] + h) * s[2]));
    return out;
  }

 private:
  static const evaluation::Json& find(const std::string& name) {
    static const evaluation::Json manifest = evaluation::Json::load(KVC_TEST_DATA "/golden/core/manifest.json");
    for (const evaluation::Json& candidate : manifest["cases"].array())
      if (candidate["name"].text() == name) return candidate;
    throw std::runtime_error("no golden case " + name);
  }
  const evaluation::Json& tensor(const std::string& name) const {
    for (const evaluation::Json& candidate : case_["tensors"].array())
      if (candidate["name"].text() == name) return candidate;
    throw std::runtime_error("no tensor " + name);
  }
  template <class T>
  std::vector<T> load(const std::string& name, const std::string& type) const {
    if (tensor(name)["dtype"].text() != type) throw std::runtime_error(name + " is not " + type);
    std::size_t count = 1;
    for (const std::size_t extent : shape(name)) count *= extent;
    std::ifstream file(KVC_TEST_DATA "/golden/core/" + tensor(name)["file"].text(), std::ios::binary);
    std::vector<char> bytes(count * sizeof(T));
    if (!file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) throw std::runtime_error("short " + name);
    std::vector<T> values(count);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

  const evaluation::Json& case_;
};

/// The tokens of a case, fed to a cache of one layer through its public interface.
class Feeder {
 public:
  Feeder(kvc::CacheShape shape, std::vector<float> q, std::vector<float> k, std::vector<float> v)
      : shape_(std::move(shape)), q_(std::move(q)), k_(std::move(k)), v_(std::move(v)) {}

  const kvc::CacheShape& shape() const { return shape_; }
  std::size_t tokens() const { return k_.size() / (shape_.kv_heads * shape_.head_dim); }

  /// Rotates queries and keys at their index in the text, as an engine does. Gives the cache the table to undo it.
  void rotate() {
    shape_.rotary = kvc::Rotary::standard(shape_.head_dim);
    rotate(q_, shape_.query_heads);
    rotate(k_, shape_.kv_heads);
  }

  /// Feeds tokens [begin, begin + count) as a prompt in parts of `chunk`; returns the outputs [count, query_heads *
  /// dim].
  std::vector<float> prompt(kvc::CacheCore& cache, std::size_t begin, std::size_t count, std::size_t chunk) const {
    std::vector<float> out(count * width());
    for (std::size_t done = 0; done < count; done += chunk) {
      const std::size_t part = std::min(chunk, count - done);
      cache.prefill(0, rows(begin + done, part), {out.data() + done * width(), part, width()}, done + part == count);
    }
    return out;
  }
  /// One generated token; returns its output [query_heads * dim].
  std::vector<float> step(kvc::CacheCore& cache, std::size_t token) const {
    std::vector<float> out(width());
    cache.decode(0, rows(token, 1), {out.data(), 1, width()});
    return out;
  }

  /// Keys or values as they were fed: one row of one head.
  std::span<const float> key(std::size_t token, std::size_t head) const { return row(k_, token, head); }
  std::span<const float> value(std::size_t token, std::size_t head) const { return row(v_, token, head); }

 private:
  std::size_t width() const { return shape_.query_heads * shape_.head_dim; }
  kvc::Tokens rows(std::size_t begin, std::size_t count) const {
    const std::size_t kv = shape_.kv_heads * shape_.head_dim;
    return {{q_.data() + begin * width(), count, width()},
            {k_.data() + begin * kv, count, kv},
            {v_.data() + begin * kv, count, kv}};
  }
  std::span<const float> row(const std::vector<float>& all, std::size_t token, std::size_t head) const {
    return {all.data() + (token * shape_.kv_heads + head) * shape_.head_dim, shape_.head_dim};
  }
  void rotate(std::vector<float>& rows, std::size_t heads) const {
    const std::size_t half = shape_.head_dim / 2;
    for (std::size_t i = 0; i < rows.size() / shape_.head_dim; ++i)
      for (std::size_t c = 0; c < half; ++c) {
        const double angle = double(i / heads) * double(shape_.rotary.inv_freq[c]);
        float &x = rows[i * shape_.head_dim + c], &y = rows[i * shape_.head_dim + half + c];
        const double a = double(x), b = double(y);
        x = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
        y = static_cast<float>(a * std::sin(angle) + b * std::cos(angle));
      }
  }

  kvc::CacheShape shape_;
  std::vector<float> q_, k_, v_;
};

/// Counts what a case compared, so that a case which compared nothing can fail.
struct Compared {
  std::size_t outputs = 0, kept = 0, rows = 0, scores = 0, lengths = 0;
};

inline float largest_difference(std::span<const float> got, std::span<const float> expected) {
  if (got.size() != expected.size()) return INFINITY;
  float largest = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const float difference = std::abs(got[i] - expected[i]);
    if (!(difference <= largest)) largest = difference;  // a NaN difference stays
  }
  return largest;
}

/// Every level of instructions that this machine has.
inline std::vector<kvc::Isa> available_isas() {
  std::vector<kvc::Isa> all;
  for (const kvc::Isa isa : kvc::AllIsas)
    if (kvc::is_available(isa)) all.push_back(isa);
  return all;
}

/// Runs `check(chunk)` at every instruction level, with the prompt whole and in parts.
template <class Check>
void every_way(std::size_t prompt, Check check) {
  for (const kvc::Isa isa : available_isas()) {
    const kvc::ScopedIsa scoped(isa);
    for (const std::size_t chunk : {prompt, std::size_t{1}, std::size_t{7}, std::size_t{16}}) check(isa, chunk);
  }
}

/// Everything in float, as the authors' runs were.
inline kvc::CacheOptions in_float() {
  return {.dense = {kvc::Scalar::f32}, .arithmetic = kvc::Arithmetic::exact};
}

}  // namespace golden
