#pragma once
#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "attention_operator.hpp"
#include "kvc/shape.hpp"

namespace ggml_example {

struct FreeContext {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
using Context = std::unique_ptr<ggml_context, FreeContext>;

/// The new queries, keys and values of all layers, random, the same for whoever asks with the same seed.
class Rows {
 public:
  explicit Rows(unsigned seed) : random_(seed) {}
  void fill(ggml_tensor* tensor) {
    auto* values = static_cast<float*>(tensor->data);
    for (std::int64_t i = 0; i < ggml_nelements(tensor); ++i) values[i] = normal_(random_);
  }

 private:
  std::mt19937 random_;
  std::normal_distribution<float> normal_;
};

/// The attention of some layers as ggml has it: a cache tensor a layer and side, rows copied into it, and flash
/// attention.
class FlashAttention {
 public:
  FlashAttention(const kvc::CacheShape& shape, ggml_type type, std::int64_t cells) : shape_(shape) {
    const auto width = static_cast<std::int64_t>(shape.kv_heads * shape.head_dim);
    context_.reset(ggml_init(
        {.mem_size = 2 * shape.layers *
                     (ggml_row_size(type, width) * static_cast<std::size_t>(cells) + ggml_tensor_overhead() + 64),
         .mem_buffer = nullptr,
         .no_alloc = false}));
    for (std::size_t i = 0; i < 2 * shape.layers; ++i) {
      cells_.push_back(ggml_new_tensor_2d(context_.get(), type, width, cells));
      std::memset(cells_.back()->data, 0, ggml_nbytes(cells_.back()));
    }
  }
  /// Of `cells` cells.
  std::size_t bytes(std::int64_t cells) const {
    return cells_.size() * static_cast<std::size_t>(cells) * ggml_row_size(cells_[0]->type, cells_[0]->ne[0]);
  }
  /// Adds a layer to a graph whose tokens come at cell `at`. Of [tokens, cells] `mask` says what each token sees.
  ggml_tensor* node(ggml_context* context, ggml_cgraph* graph, std::size_t layer, ggml_tensor* q, ggml_tensor* k,
                    ggml_tensor* v, ggml_tensor* mask, std::int64_t at) {
    ggml_tensor* sides[2];
    for (const std::size_t side : {0u, 1u}) {
      ggml_tensor *cells = cells_[2 * layer + side], *rows = side == 0 ? k : v;
      ggml_tensor* place = ggml_view_2d(context, cells, cells->ne[0], rows->ne[2], cells->nb[1],
                                        static_cast<std::size_t>(at) * cells->nb[1]);
      ggml_build_forward_expand(graph,
                                ggml_cpy(context, ggml_reshape_2d(context, rows, cells->ne[0], rows->ne[2]), place));
      sides[side] = ggml_permute(context,
                                 ggml_view_3d(context, cells, rows->ne[0], rows->ne[1], mask->ne[0],
                                              ggml_row_size(cells->type, rows->ne[0]), cells->nb[1], 0),
                                 0, 2, 1, 3);
    }
    ggml_tensor* out = ggml_flash_attn_ext(context, ggml_permute(context, q, 0, 2, 1, 3), sides[0], sides[1], mask,
                                           shape_.logit_scale(), 0, 0);
    return ggml_reshape_2d(context, out, q->ne[0] * q->ne[1], q->ne[2]);
  }

 private:
  kvc::CacheShape shape_;
  Context context_;
  std::vector<ggml_tensor*> cells_;
};

/// A graph of nothing but attention: all layers, for `tokens` tokens that come at position `at`.
struct Graph {
  /// One of the two is null: whose attention it is.
  Graph(const kvc::CacheShape& shape, std::int64_t tokens, std::int64_t at, AttentionOperator* attention,
        FlashAttention* flash, Rows& rows) {
    const auto heads = static_cast<std::int64_t>(shape.query_heads),
               kv_heads = static_cast<std::int64_t>(shape.kv_heads);
    const auto dim = static_cast<std::int64_t>(shape.head_dim);
    const std::int64_t cells = (at + tokens + 255) / 256 * 256;
    const auto numbers = static_cast<std::size_t>(
        tokens * (dim * (2 * heads + 2 * kv_heads)) * static_cast<std::int64_t>(shape.layers) + tokens * cells);
    context.reset(ggml_init(
        {.mem_size = (std::size_t{4} << 20) + numbers * sizeof(float), .mem_buffer = nullptr, .no_alloc = false}));
    graph = ggml_new_graph_custom(context.get(), 64 * shape.layers, false);
    ggml_tensor* mask = flash ? ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, cells, tokens) : nullptr;
    for (std::int64_t token = 0; mask && token < tokens; ++token)
      for (std::int64_t cell = 0; cell < cells; ++cell)
        static_cast<ggml_fp16_t*>(mask->data)[token * cells + cell] =
            ggml_fp32_to_fp16(cell <= at + token ? 0.0f : -INFINITY);
    for (std::size_t layer = 0; layer < shape.layers; ++layer) {
      ggml_tensor* q = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, dim, heads, tokens);
      ggml_tensor* k = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, dim, kv_heads, tokens);
      ggml_tensor* v = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, dim, kv_heads, tokens);
      for (ggml_tensor* tensor : {q, k, v}) rows.fill(tensor);
      out.push_back(attention ? attention->node(context.get(), layer, q, k, v)
                              : flash->node(context.get(), graph, layer, q, k, v, mask, at));
      ggml_build_forward_expand(graph, out.back());
    }
  }
  void compute(int threads) const {
    if (ggml_graph_compute_with_ctx(context.get(), graph, threads) != GGML_STATUS_SUCCESS)
      kvc::fail(kvc::ErrorCode::incompatible, "ggml could not compute the graph");
  }

  Context context;
  ggml_cgraph* graph;
  std::vector<ggml_tensor*> out;  ///< by layer: [query_heads * head_dim, tokens]
};

}  // namespace ggml_example
