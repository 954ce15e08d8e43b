// A cache in a type of llama.cpp.
#include "catch_shim.hpp"

#include <algorithm>
#include <cstring>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/codec/ggml.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/storage/row_store.hpp"
#include "support/oracle.hpp"

using namespace kvc;

namespace {

const CacheShape Shape{.layers = 1, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
constexpr std::size_t Prompt = 300, Steps = 40, Width = 128, QueryWidth = 256, Dim = 64, Length = Prompt + Steps;

struct Fed {
  std::vector<float> q = oracle::normal_floats(Length * QueryWidth, 1), k = oracle::normal_floats(Length * Width, 2),
                     v = oracle::normal_floats(Length * Width, 3), out = std::vector<float>(Length * QueryWidth);

  void feed(CacheCore& cache) {
    const auto pass = [&](std::size_t first, std::size_t count) {
      const kvc::Tokens tokens{{q.data() + first * QueryWidth, count, QueryWidth},
                               {k.data() + first * Width, count, Width},
                               {v.data() + first * Width, count, Width}};
      const Rows<float> results{out.data() + first * QueryWidth, count, QueryWidth};
      count == 1 ? cache.decode(0, tokens, results) : cache.prefill(0, tokens, results);
    };
    pass(0, Prompt);
    for (std::size_t step = 0; step < Steps; ++step) pass(Prompt + step, 1);
  }
};

/// A head's keys or values in ggml's bytes, encoded from what was fed.
std::vector<std::byte> bytes_of(GgmlType type, const std::vector<float>& fed, std::size_t head) {
  const GgmlCodec codec({type}, Dim);
  std::vector<std::byte> bytes(codec.block_bytes(Length));
  codec.encode({fed.data() + head * Dim, Length, Dim, Width}, bytes.data(), Length, 0);
  return bytes;
}

/// The bytes that a store holds, row by row; rows that are not sealed are missing.
std::vector<std::byte> stored_bytes(const RowStore& rows, std::size_t row_bytes) {
  std::vector<std::byte> bytes;
  for (const Segment& segment : rows.segments()) {
    if (!segment.sealed) continue;
    const std::byte* first = segment.block->data() + segment.begin * row_bytes;
    bytes.insert(bytes.end(), first, first + segment.rows() * row_bytes);
  }
  return bytes;
}

}  // namespace

TEST_CASE("A cache in ggml types holds the bytes that ggml would write for the rows it was fed") {
  KVCache cache(Shape, Full{.ggml = GgmlType::q8_0, .value_ggml = GgmlType::q4_0}, {.dense = {Scalar::f32}});
  Fed fed;
  fed.feed(cache);
  for (std::uint32_t head = 0; head < 2; ++head) {
    CHECK(stored_bytes(cache.key_rows({0, head}), 2 * 34) == bytes_of(GgmlType::q8_0, fed.k, head));
    CHECK(stored_bytes(cache.value_rows({0, head}), 2 * 18) == bytes_of(GgmlType::q4_0, fed.v, head));
  }
}

TEST_CASE("Statistics of a ggml cache are its blocks' bytes") {
  KVCache cache(Shape, Full{.ggml = GgmlType::q8_0, .value_ggml = GgmlType::q4_0});
  Fed().feed(cache);
  CHECK(cache.stats().payload == 2 * Length * (2 * 34 + 2 * 18));
}

TEST_CASE("Attention over a ggml cache is attention over its rows as they read back, at every instruction set") {
  Fed fed;
  oracle::at_every_isa([&](Isa isa) {
    INFO(to_string(isa));
    KVCache cache(Shape, Full{.ggml = GgmlType::q5_1}, {.dense = {Scalar::f32}});
    fed.feed(cache);
    double worst = 0;
    for (std::size_t head = 0; head < Shape.query_heads; ++head) {
      const std::size_t kv = head / 2;
      std::vector<float> keys(Length * Dim), values(Length * Dim);
      const GgmlCodec codec({GgmlType::q5_1}, Dim);
      codec.decode(bytes_of(GgmlType::q5_1, fed.k, kv).data(), Length, 0, {keys.data(), Length, Dim});
      codec.decode(bytes_of(GgmlType::q5_1, fed.v, kv).data(), Length, 0, {values.data(), Length, Dim});
      const std::size_t last = Length - 1;
      std::vector<double> weights(Length), expected(Dim);
      double sum = 0;
      for (std::size_t t = 0; t < Length; ++t) {
        // The newest token is read as it was fed: it is sealed after the pass.
        const float* key = t == last ? fed.k.data() + last * Width + kv * Dim : keys.data() + t * Dim;
        double score = 0;
        for (std::size_t c = 0; c < Dim; ++c)
          score += double(fed.q[last * QueryWidth + head * Dim + c]) * double(key[c]);
        sum += weights[t] = std::exp(score / 8);
      }
      for (std::size_t t = 0; t < Length; ++t) {
        const float* value = t == last ? fed.v.data() + last * Width + kv * Dim : values.data() + t * Dim;
        for (std::size_t c = 0; c < Dim; ++c) expected[c] += weights[t] / sum * double(value[c]);
      }
      for (std::size_t c = 0; c < Dim; ++c)
        worst = std::max(worst, std::fabs(expected[c] - double(fed.out[last * QueryWidth + head * Dim + c])));
    }
    CHECK(worst < 3e-6);
  });
}
