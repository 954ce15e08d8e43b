#include "ggml/attention_operator.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>

#include "catch_shim.hpp"
#include "ggml/ggml_layers.hpp"
#include "kvc/kvc.hpp"

// kvc's attention as nodes of a ggml graph, next to ggml's own.

namespace {

const kvc::CacheShape Shape{.layers = 3, .query_heads = 6, .kv_heads = 2, .head_dim = 32};

std::vector<float> copy_of(const std::vector<ggml_tensor*>& tensors) {
  std::vector<float> values;
  for (const ggml_tensor* tensor : tensors) {
    const auto* data = static_cast<const float*>(tensor->data);
    values.insert(values.end(), data, data + ggml_nelements(tensor));
  }
  return values;
}

/// What all layers give for a prompt of 100 tokens and 20 more, by one or the other.
std::vector<float> run(ggml_example::AttentionOperator* attention, ggml_example::FlashAttention* flash, int threads) {
  ggml_example::Rows rows(5);
  std::vector<float> all;
  for (int at = 0; at < 120;) {
    const int tokens = at == 0 ? 100 : 1;
    const ggml_example::Graph graph(Shape, tokens, at, attention, flash, rows);
    if (attention) attention->expect(at == 0 ? ggml_example::Feed::prompt : ggml_example::Feed::generated);
    graph.compute(threads);
    if (attention) attention->check();
    const std::vector<float> out = copy_of(graph.out);
    all.insert(all.end(), out.begin(), out.end());
    at += tokens;
  }
  return all;
}

}  // namespace

TEST_CASE("the operator gives ggml's flash attention, on any number of threads and bit for bit the same on all") {
  ggml_example::FlashAttention flash(Shape, GGML_TYPE_F32, 256);
  const std::vector<float> expected = run(nullptr, &flash, 1);
  std::vector<float> first;
  for (const int threads : {1, 2, 3}) {
    ggml_example::AttentionOperator attention;
    kvc::KVCache cache(Shape, kvc::Full{}, {.dense = {kvc::Scalar::f32}, .executor = &attention.executor()});
    attention.serve(cache);
    const std::vector<float> out = run(&attention, nullptr, threads);
    float largest = 0;
    REQUIRE(out.size() == expected.size());
    for (std::size_t i = 0; i < out.size(); ++i) largest = std::fmax(largest, std::fabs(out[i] - expected[i]));
    CHECK(largest < 1e-3f);
    if (first.empty()) first = out;
    CHECK(out == first);
    CHECK(cache.stats().seen == 120);
  }
}

TEST_CASE("what a node cannot do arrives at the check, not in ggml") {
  for (const int threads : {1, 2}) {
    ggml_example::AttentionOperator attention;
    kvc::KVCache cache({.layers = 3, .query_heads = 6, .kv_heads = 2, .head_dim = 64}, kvc::Full{},
                       {.executor = &attention.executor()});
    attention.serve(cache);
    ggml_example::Rows rows(5);
    const ggml_example::Graph graph(Shape, 4, 0, &attention, nullptr, rows);
    graph.compute(threads);
    CHECK_THROWS_AS(attention.check(), kvc::Error);
    CHECK_NOTHROW(attention.check());
    CHECK(cache.stats().seen == 0);
  }
}
