#pragma once
/// What kvc/llama.hpp knows about llama.cpp's graphs: which nodes store rows into its cache, which attend to them, and
/// what they say about the model. Nodes are told apart by what they do, never by their names.
#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvc/error.hpp"
#include "kvc/shape.hpp"

namespace kvc::inline KVC_ABI::llama {

inline std::size_t extent(const ggml_tensor* tensor, int dimension) {
  return static_cast<std::size_t>(tensor->ne[dimension]);
}

/// What a tensor is a view, a cast or a copy of.
inline const ggml_tensor* root(const ggml_tensor* tensor) {
  for (;;) {
    if (tensor->view_src)
      tensor = tensor->view_src;
    else if (tensor->src[0] && (tensor->op == GGML_OP_CPY || tensor->op == GGML_OP_DUP || tensor->op == GGML_OP_CONT))
      tensor = tensor->src[0];
    else
      return tensor;
  }
}

/// Whether a tensor lies outside of the graph: no node computes it and it is no input.
inline bool is_outside(const ggml_tensor* tensor) {
  const ggml_tensor* origin = root(tensor);
  return origin->op == GGML_OP_NONE && !(origin->flags & GGML_TENSOR_FLAG_INPUT);
}

/// Whether a node stores rows into a tensor outside of the graph: llama.cpp's cache, root(node).
inline bool stores_rows(const ggml_tensor* node) {
  return node->op == GGML_OP_SET_ROWS && is_outside(node);
}

/// Whether a node only says how to look at a tensor, or copies it.
inline bool passes_on(const ggml_tensor* node) {
  switch (node->op) {
    case GGML_OP_NONE:
    case GGML_OP_VIEW:
    case GGML_OP_RESHAPE:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
    case GGML_OP_CPY:
    case GGML_OP_CONT:
    case GGML_OP_DUP:
      return true;
    default:
      return false;
  }
}

inline float float_parameter(const ggml_tensor* node, int index) {
  float value;
  std::memcpy(&value, node->op_params + index, sizeof value);
  return value;
}

/// The rotary embedding of rows that a GGML_OP_ROPE made, with its scalings (linear, YaRN, factors of the model). Empty
/// if they come from another node, or from a kind of rotation that kvc has no word for.
inline Rotary rotary_of(const ggml_tensor* rows) {
  const ggml_tensor* rope = root(rows);
  if (rope->op != GGML_OP_ROPE) return {};
  const int pairs = rope->op_params[1] / 2, mode = rope->op_params[2], original_context = rope->op_params[4];
  if ((mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) || rope->op_params[15] != 0) return {};
  const float base = float_parameter(rope, 5), stretch = float_parameter(rope, 6), mix = float_parameter(rope, 7);
  float ramp[2] = {};
  ggml_rope_yarn_corr_dims(2 * pairs, original_context, base, float_parameter(rope, 9), float_parameter(rope, 10),
                           ramp);
  const auto* factors = rope->src[2] ? static_cast<const float*>(rope->src[2]->data) : nullptr;

  Rotary rotary{{}, mode == GGML_ROPE_TYPE_NORMAL};
  for (int i = 0; i < pairs; ++i) {
    double frequency = std::pow(double(base), -double(i) / double(pairs));
    if (factors) frequency /= double(factors[i]);
    const double along = (double(i) - double(ramp[0])) / std::max(0.001, double(ramp[1]) - double(ramp[0]));
    const double unscaled = mix == 0 ? 0 : double(mix) * (1 - std::clamp(along, 0.0, 1.0));
    rotary.inv_freq.push_back(static_cast<float>(frequency * (double(stretch) * (1 - unscaled) + unscaled)));
  }
  return rotary;
}

/// One GGML_OP_FLASH_ATTN_EXT over llama.cpp's cache, as one pass over the graph saw it.
struct AttentionNode {
  std::string name;
  const ggml_tensor *keys = nullptr, *values = nullptr;  ///< llama.cpp's cache tensors [row, cells, streams]
  const ggml_tensor* mask = nullptr;
  std::size_t query_heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0;
  float scale = 0, softcap = 0, alibi = 0;
  bool sinks = false;
  std::vector<float> sink_logits = {};  ///< [query_heads], where the model has them and they can be read
  Position window = 0;                  ///< Survey::served() says it
};

/// The sink logits of an attention node. None if they lie on a device, or have not been read from the file.
inline std::vector<float> sink_logits_of(const ggml_tensor* node) {
  const ggml_tensor* sinks = node->src[4];
  if (!sinks || sinks->type != GGML_TYPE_F32 || !sinks->data || !ggml_is_contiguous(sinks)) return {};
  if (sinks->buffer && !ggml_backend_buffer_is_host(sinks->buffer)) return {};
  const auto* first = static_cast<const float*>(sinks->data);
  return {first, first + ggml_nelements(sinks)};
}

inline AttentionNode read_attention(const ggml_tensor* node) {
  const ggml_tensor *q = node->src[0], *k = node->src[1];
  return {.name = node->name,
          .keys = root(k),
          .values = root(node->src[2]),
          .mask = node->src[3],
          .query_heads = extent(q, 2),
          .kv_heads = extent(k, 2),
          .head_dim = extent(q, 0),
          .value_dim = extent(node, 0),
          .scale = float_parameter(node, 0),
          .softcap = float_parameter(node, 2),
          .alibi = float_parameter(node, 1),
          .sinks = node->src[4] != nullptr,
          .sink_logits = sink_logits_of(node)};
}

/// The first layer with the same window.
inline std::size_t first_alike(const CacheShape& shape, std::size_t layer) {
  std::size_t first = 0;
  while (shape.window(first) != shape.window(layer)) ++first;
  return first;
}

/// Looks at every node of one pass and says what kvc can serve.
class Survey {
 public:
  void look_at(const ggml_tensor* node) {
    if (stores_rows(node)) {
      stored_[root(node)] = {rotary_of(node->src[0]), node->src[0]->type};
    } else if (node->op == GGML_OP_FLASH_ATTN_EXT && is_stored(node->src[1])) {
      layers_.push_back(read_attention(node));
    } else if (!passes_on(node) && unknown_reader_.empty()) {
      for (const ggml_tensor* source : node->src)
        if (source && is_stored(source))
          unknown_reader_ = std::string(ggml_op_name(node->op)) + " \"" + node->name + '"';
    }
  }

  /// What is known of the model's windows besides its graph.
  struct Windows {
    Position size = 0;       ///< tokens; 0: the model has none
    std::int64_t cells = 0;  ///< of the cache of a layer without a window
    bool sliding = true;     ///< otherwise they are something else than windows that slide, as the chunks of Llama 4
  };

  /// The layers that kvc serves, in the order of the model. Those with a window have a smaller cache in llama.cpp's graphs, by
  /// which they are known. Where their windows do not slide, they stay with llama.cpp. Throws Error (incompatible) with the reason
  /// if a layer cannot be served.
  std::vector<AttentionNode> served(const Windows& windows) const {
    if (!unknown_reader_.empty())
      refuse({"the node ", unknown_reader_, " reads llama.cpp's cache in a way other than flash attention"});
    if (layers_.empty())
      refuse({"no flash attention over a KV cache was seen: it has none, or llama.cpp computes it otherwise"});
    const auto is_windowed = [&](const AttentionNode& layer) {
      return windows.size != 0 && layer.keys->ne[1] < windows.cells;
    };
    if (windows.size != 0 && std::none_of(layers_.begin(), layers_.end(), is_windowed))
      refuse({"it has a window of ", windows.size,
              " tokens, and the layers with it cannot be told from the others: either its graph makes no use of it, or "
              "n_ctx, which is ",
              windows.cells, " a sequence, must be larger than the window and n_ubatch together"});
    std::vector<AttentionNode> all;
    for (const AttentionNode& layer : layers_) {
      if (is_windowed(layer) && !windows.sliding) continue;
      all.push_back(layer);
      if (is_windowed(layer)) all.back().window = windows.size;
    }
    if (all.empty()) refuse({"no layer is without a window, and its windows do not slide"});
    for (const AttentionNode& layer : all) check(layer, all);
    return all;
  }
  bool has_other_layers(const std::vector<AttentionNode>& served) const { return served.size() != layers_.size(); }

  static CacheShape shape_of(const std::vector<AttentionNode>& layers) {
    const AttentionNode& first = layers.front();
    CacheShape shape{.layers = layers.size(),
                     .query_heads = first.query_heads,
                     .kv_heads = first.kv_heads,
                     .head_dim = first.head_dim,
                     .value_dim = first.value_dim,
                     .scale = first.scale,
                     .softcap = first.softcap};
    if (std::any_of(layers.begin(), layers.end(), [](const auto& layer) { return layer.window != 0 || layer.sinks; }))
      for (const AttentionNode& layer : layers)
        shape.each_layer.push_back({.window = layer.window, .sink_logits = layer.sink_logits});
    return shape;
  }
  /// What all of the layers are rotated by; empty if they differ or if it is not known.
  Rotary rotary(const std::vector<AttentionNode>& layers) const {
    const Rotary& first = stored_.at(layers.front().keys).rotary;
    for (const AttentionNode& layer : layers) {
      const Rotary& other = stored_.at(layer.keys).rotary;
      if (other.inv_freq != first.inv_freq || other.interleaved != first.interleaved) return {};
    }
    return first;
  }

 private:
  struct Stored {
    Rotary rotary;
    ggml_type type;
  };

  bool is_stored(const ggml_tensor* tensor) const { return tensor && stored_.contains(root(tensor)); }

  [[noreturn]] static void refuse(std::initializer_list<Fragment> reason) {
    fail(ErrorCode::incompatible, {"LlamaCache: this model cannot be served: ", joined(reason)});
  }
  void check(const AttentionNode& layer, const std::vector<AttentionNode>& all) const {
    const AttentionNode& first = all.front();
    const auto require = [&](bool holds, std::initializer_list<Fragment> reason) {
      if (!holds) refuse({"\"", layer.name, "\": ", joined(reason)});
    };
    require(layer.keys != layer.values && is_stored(layer.values),
            {"keys and values are one tensor (multi-head latent attention)"});
    require(std::count_if(all.begin(), all.end(), [&](const auto& other) { return other.keys == layer.keys; }) == 1,
            {"it shares the rows of another layer"});
    require(!layer.sinks || layer.sink_logits.size() == layer.query_heads,
            {"its sink logits are not one f32 number a query head that the CPU can read"});
    require(layer.alibi == 0, {"it has ALiBi (a bias that grows with the distance)"});
    require(layer.mask && root(layer.mask)->op == GGML_OP_NONE && (root(layer.mask)->flags & GGML_TENSOR_FLAG_INPUT),
            {"its mask is missing or computed by the graph"});
    const auto alike =
        std::find_if(all.begin(), all.end(), [&](const auto& other) { return other.window == layer.window; });
    require(root(layer.mask) == root(alike->mask),
            {"it has another mask than \"", alike->name, "\", whose window is the same"});
    require(layer.query_heads == first.query_heads && layer.kv_heads == first.kv_heads &&
                layer.head_dim == first.head_dim && layer.value_dim == first.value_dim,
            {"it has ", layer.query_heads, " query heads over ", layer.kv_heads, " KV heads of ", layer.head_dim,
             " and ", layer.value_dim, " dimensions, but the first layer has ", first.query_heads, " over ",
             first.kv_heads, " of ", first.head_dim, " and ", first.value_dim});
    require(layer.scale == first.scale && layer.softcap == first.softcap,
            {"its scale (", layer.scale, ") or soft-cap (", layer.softcap, ") differs from the first layer's"});
    for (const ggml_tensor* tensor : {layer.keys, layer.values}) {
      const ggml_type type = stored_.at(tensor).type;
      require(type == GGML_TYPE_F32 || type == GGML_TYPE_F16,
              {"its rows are ", ggml_type_name(type), ", not f32 or f16"});
    }
  }

  std::vector<AttentionNode> layers_;
  std::unordered_map<const ggml_tensor*, Stored> stored_;
  std::string unknown_reader_;
};

}  // namespace kvc::inline KVC_ABI::llama
