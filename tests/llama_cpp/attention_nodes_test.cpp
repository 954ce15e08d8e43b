#include "kvc/llama/attention_nodes.hpp"

#include <ggml-cpu.h>

#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/rotary.hpp"

// What is learned from a graph of llama.cpp. The graphs here are the test's own: they have the nodes that matter.

namespace {

struct FreeGGML {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
using GGML = std::unique_ptr<ggml_context, FreeGGML>;

/// What one layer of a graph is like.
struct LayerKind {
  std::int64_t query_heads = 4, kv_heads = 2, head_dim = 16, value_dim = 16, cells = 256;
  float scale = 0.25f, alibi = 0, softcap = 0;
  bool sinks = false, one_tensor = false, computed_mask = false, no_mask = false, own_mask = false;
};

class Graph {
 public:
  /// `holds`: tensors have memory, and so values.
  explicit Graph(bool holds = false)
      : context_(ggml_init({.mem_size = 1 << 20, .mem_buffer = nullptr, .no_alloc = !holds})) {
    positions_ = input(GGML_TYPE_I32, 3);
  }
  ggml_tensor* input(ggml_type type, std::int64_t a, std::int64_t b = 1, std::int64_t c = 1) {
    ggml_tensor* tensor = ggml_new_tensor_3d(context_.get(), type, a, b, c);
    ggml_set_input(tensor);
    return tensor;
  }
  ggml_tensor* outside(std::int64_t width, std::int64_t cells) {
    return ggml_new_tensor_3d(context_.get(), GGML_TYPE_F16, width, cells, 1);
  }
  /// Stores three rows of `heads` heads, rotated if `rotated`, into `cells`.
  void store(ggml_tensor* cells, std::int64_t heads, std::int64_t dim, bool rotated) {
    ggml_tensor* rows = input(GGML_TYPE_F32, dim, heads, 3);
    if (rotated) rows = ggml_rope(context_.get(), rows, positions_, static_cast<int>(dim), GGML_ROPE_TYPE_NORMAL);
    rows = ggml_view_2d(context_.get(), rows, dim * heads, 3, rows->nb[2], 0);
    survey.look_at(ggml_set_rows(context_.get(), cells, rows, input(GGML_TYPE_I64, 3)));
  }
  ggml_tensor* heads_of(ggml_tensor* cells, std::int64_t heads, std::int64_t dim) {
    ggml_tensor* view = ggml_view_4d(context_.get(), cells, dim, heads, cells->ne[1], 1,
                                     ggml_row_size(cells->type, dim), cells->nb[1], cells->nb[2], 0);
    return ggml_permute(context_.get(), view, 0, 2, 1, 3);
  }
  void attend(const LayerKind& kind, ggml_tensor* keys, ggml_tensor* values) {
    ggml_tensor* q = ggml_permute(context_.get(), input(GGML_TYPE_F32, kind.head_dim, kind.query_heads, 3), 0, 2, 1, 3);
    ggml_tensor*& usual = masks_[kind.cells];
    if (!usual || kind.own_mask) usual = input(GGML_TYPE_F16, kind.cells, 3);
    ggml_tensor* mask = kind.no_mask ? nullptr : usual;
    if (kind.computed_mask) mask = ggml_scale(context_.get(), mask, 2);
    ggml_tensor* node = ggml_flash_attn_ext(context_.get(), q, heads_of(keys, kind.kv_heads, kind.head_dim),
                                            heads_of(values, kind.kv_heads, kind.value_dim), mask, kind.scale,
                                            kind.alibi, kind.softcap);
    if (kind.sinks) {
      ggml_tensor* sinks = input(GGML_TYPE_F32, kind.query_heads);
      for (int head = 0; sinks->data && head < kind.query_heads; ++head)
        ggml_set_f32_1d(sinks, head, static_cast<float>(head));
      ggml_flash_attn_ext_add_sinks(node, sinks);
    }
    ggml_set_name(node, "attention");
    survey.look_at(node);
  }
  /// Returns the layer's keys.
  ggml_tensor* add(const LayerKind& kind, bool rotated = true) {
    ggml_tensor* keys = outside(kind.kv_heads * kind.head_dim, kind.cells);
    ggml_tensor* values = kind.one_tensor ? keys : outside(kind.kv_heads * kind.value_dim, kind.cells);
    store(keys, kind.kv_heads, kind.head_dim, rotated);
    if (!kind.one_tensor) store(values, kind.kv_heads, kind.value_dim, false);
    attend(kind, keys, values);
    return keys;
  }
  ggml_context* context() { return context_.get(); }

  kvc::llama::Survey survey;

 private:
  GGML context_;
  ggml_tensor* positions_;
  std::map<std::int64_t, ggml_tensor*> masks_;  ///< by their cells
};

std::string refusal_of(const Graph& graph, kvc::Position window = 0) {
  try {
    graph.survey.served({.size = window, .cells = 256});
  } catch (const kvc::Error& error) {
    CHECK(error.code() == kvc::ErrorCode::incompatible);
    return error.what();
  }
  return "nothing was refused";
}
std::string refusal_of(const LayerKind& kind) {
  Graph graph;
  graph.add(kind);
  return refusal_of(graph);
}
void check_says(const std::string& sentence, const std::string& part) {
  INFO(sentence);
  CHECK(sentence.find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("the shape of the cache is what the attention nodes say") {
  Graph graph;
  LayerKind kind;
  kind.value_dim = 8;
  kind.softcap = 30;
  for (int layer = 0; layer < 3; ++layer) graph.add(kind);
  const auto layers = graph.survey.served({});
  const kvc::CacheShape shape = kvc::llama::Survey::shape_of(layers);
  CHECK(shape.layers == 3);
  CHECK(shape.query_heads == 4);
  CHECK(shape.kv_heads == 2);
  CHECK(shape.head_dim == 16);
  CHECK(shape.value_dim == 8);
  CHECK(shape.scale == 0.25f);
  CHECK(shape.softcap == 30);
  CHECK_FALSE(graph.survey.has_other_layers(layers));
  CHECK(graph.survey.rotary(layers).inv_freq == kvc::Rotary::standard(16).inv_freq);
  CHECK(graph.survey.rotary(layers).interleaved);
}

TEST_CASE("a model whose layers are not all rotated alike has no rotary embedding to speak of") {
  Graph graph;
  graph.add({}, true);
  graph.add({}, false);
  CHECK(graph.survey.rotary(graph.survey.served({})).inv_freq.empty());
}

TEST_CASE("what attention has beyond the shape is refused by its name") {
  check_says(refusal_of({.sinks = true}), "its sink logits are not");
  check_says(refusal_of({.alibi = 8}), "ALiBi");
  check_says(refusal_of({.one_tensor = true}), "multi-head latent attention");
  check_says(refusal_of({.computed_mask = true}), "mask is missing or computed");
  check_says(refusal_of({.no_mask = true}), "mask is missing or computed");
  check_says(refusal_of(Graph{}), "no flash attention");
}

TEST_CASE("layers that differ are refused with both shapes") {
  Graph heads;
  heads.add({});
  heads.add({.kv_heads = 1});
  check_says(refusal_of(heads),
             "4 query heads over 1 KV heads of 16 and 16 dimensions, but the first layer has 4 over 2");
  Graph scales;
  scales.add({});
  scales.add({.scale = 0.5f});
  check_says(refusal_of(scales), "scale");
  Graph masks;
  masks.add({});
  masks.add({.own_mask = true});
  check_says(refusal_of(masks), "another mask");
}

TEST_CASE("a layer that attends to another layer's rows is refused") {
  Graph graph;
  const LayerKind kind;
  ggml_tensor* keys = graph.add(kind);
  ggml_tensor* values = graph.outside(32, kind.cells);
  graph.store(values, 2, 16, false);
  graph.attend(kind, keys, values);
  check_says(refusal_of(graph), "shares the rows of another layer");
}

TEST_CASE("a node that reads the cache in another way is refused by its name") {
  Graph graph;
  ggml_tensor* keys = graph.add({});
  ggml_tensor* product =
      ggml_mul_mat(graph.context(), graph.heads_of(keys, 2, 16), graph.input(GGML_TYPE_F32, 16, 3, 2));
  ggml_set_name(product, "kq");
  graph.survey.look_at(product);
  check_says(refusal_of(graph), "MUL_MAT \"kq\"");
}

TEST_CASE("layers with a sliding window are told by their smaller cache, and refused where it is not smaller") {
  Graph graph;
  graph.add({.cells = 1024});
  graph.add({.cells = 512});
  graph.add({.cells = 1024});
  const auto layers = graph.survey.served({.size = 300, .cells = 1024});
  CHECK(layers.size() == 3);
  CHECK_FALSE(graph.survey.has_other_layers(layers));
  const kvc::CacheShape shape = kvc::llama::Survey::shape_of(layers);
  CHECK(shape.window(0) == 0);
  CHECK(shape.window(1) == 300);
  CHECK(shape.window(2) == 0);
  Graph all;
  all.add({.cells = 1024});
  all.add({.cells = 1024});
  CHECK(all.survey.served({.size = 300, .cells = 2048})[0].window == 300);
  Graph alike;
  alike.add({});
  alike.add({});
  check_says(refusal_of(alike, 300), "window of 300 tokens");
}

TEST_CASE("layers whose windows do not slide stay with llama.cpp") {
  Graph graph;
  graph.add({.cells = 1024});
  graph.add({.cells = 512, .alibi = 1});
  const auto layers = graph.survey.served({.size = 300, .cells = 1024, .sliding = false});
  CHECK(layers.size() == 1);
  CHECK(graph.survey.has_other_layers(layers));
}

TEST_CASE("sink logits are read where the CPU can read them") {
  Graph graph(true);
  graph.add({.sinks = true});
  CHECK(kvc::llama::Survey::shape_of(graph.survey.served({})).each_layer[0].sink_logits ==
        std::vector<float>{0, 1, 2, 3});
}

TEST_CASE("the rotary embedding that is read off a node turns rows as ggml does, with every scaling that it has") {
  struct Case {
    int mode;
    int dims;  ///< that turn, of 32
    float base, stretch, mix;
    bool factors;
  };
  for (const Case& one :
       {Case{GGML_ROPE_TYPE_NORMAL, 32, 10000, 1, 0, false}, Case{GGML_ROPE_TYPE_NEOX, 32, 500000, 0.25f, 0, true},
        Case{GGML_ROPE_TYPE_NEOX, 16, 10000, 1, 0, false}, Case{GGML_ROPE_TYPE_NORMAL, 32, 10000, 0.125f, 1, false}}) {
    INFO("mode " << one.mode << ", dimensions " << one.dims << ", stretch " << one.stretch << ", mix " << one.mix);
    const GGML context(ggml_init({.mem_size = 1 << 20, .mem_buffer = nullptr, .no_alloc = false}));
    ggml_tensor* rows = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, 32, 1, 2);
    ggml_tensor* positions = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, 2);
    ggml_tensor* factors = one.factors ? ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 16) : nullptr;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    auto* values = static_cast<float*>(rows->data);
    for (int i = 0; i < 32; ++i) values[i] = values[32 + i] = normal(random);
    static_cast<std::int32_t*>(positions->data)[0] = 5;
    static_cast<std::int32_t*>(positions->data)[1] = 905;
    for (int i = 0; factors && i < 16; ++i) static_cast<float*>(factors->data)[i] = 1 + 0.5f * static_cast<float>(i);
    ggml_tensor* rope = ggml_rope_ext(context.get(), rows, positions, factors, one.dims, one.mode, 128, one.base,
                                      one.stretch, one.mix, 1, 32, 1);
    ggml_cgraph* graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, rope);
    REQUIRE(ggml_graph_compute_with_ctx(context.get(), graph, 1) == GGML_STATUS_SUCCESS);

    const kvc::Rotary rotary = kvc::llama::rotary_of(rope);
    REQUIRE(rotary.inv_freq.size() == static_cast<std::size_t>(one.dims) / 2);
    auto* turned = static_cast<float*>(rope->data);
    kvc::rotate(std::span(turned, 32), rotary, 900);
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = std::fmax(largest, std::fabs(turned[i] - turned[32 + i]));
    CHECK(largest < 2e-3f);  // ggml multiplies up its angles in f32
  }
}
