#pragma once
#include <ggml.h>

#include <cstddef>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/team_executor.hpp"

namespace ggml_example {

/// What the tokens of a graph are to the policies.
enum class Feed { prompt_part, prompt, generated };

/// kvc's cache and attention as an operator of ggml graphs, by ggml's public API: a custom node for each layer, in the
/// place of the nodes that would store keys and values and those that would attend to them. It runs on the CPU backend,
/// on all threads that compute the graph, and has no others.
///
///     AttentionOperator attention;
///     kvc::KVCache cache(shape, policy, {.executor = &attention.executor()});
///     attention.serve(cache);
///     ggml_tensor* out = attention.node(context, layer, q, k, v);   // for each layer, in the graph's order
///     attention.expect(Feed::prompt);
///     ggml_graph_compute(...);
///     attention.check();
///
/// A graph may be computed again, for the next tokens. The operator must outlive it, and stay where it is.
class AttentionOperator {
 public:
  AttentionOperator() = default;
  AttentionOperator(const AttentionOperator&) = delete;
  AttentionOperator& operator=(const AttentionOperator&) = delete;

  kvc::Executor& executor() { return team_; }

  /// The sequence that the nodes work on, from now on. Graphs may change it between two computations.
  void serve(kvc::CacheCore& cache) {
    if (layers_.size() > cache.shape().layers)
      kvc::fail(kvc::ErrorCode::shape_mismatch, "AttentionOperator: the cache has fewer layers than the graphs have");
    while (layers_.capacity() < cache.shape().layers) layers_.reserve(cache.shape().layers);  // nodes point at them
    while (layers_.size() < cache.shape().layers) layers_.push_back({this, layers_.size()});
    cache_ = &cache;
  }
  void expect(Feed feed) { feed_ = feed; }

  /// A node that appends the keys [head_dim, kv_heads, tokens] and values [value_dim, kv_heads, tokens] to a layer and
  /// gives the attention of the queries [head_dim, query_heads, tokens] as [query_heads * value_dim, tokens]. All are
  /// f32; heads of a token lie together.
  ggml_tensor* node(ggml_context* context, std::size_t layer, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v) {
    ggml_tensor* sources[] = {q, k, v};
    return ggml_custom_4d(context, GGML_TYPE_F32, v->ne[0] * q->ne[1], q->ne[2], 1, 1, sources, 3, compute,
                          GGML_N_TASKS_MAX, &layers_.at(layer));
  }

  /// Throws what a node threw since the last check. The nodes behind it did nothing, and what the graph gave is of no
  /// use.
  void check() {
    if (failure_) std::rethrow_exception(std::exchange(failure_, {}));
  }

 private:
  struct Layer {
    AttentionOperator* self;
    std::size_t index;
  };

  static kvc::ConstRows rows_of(const ggml_tensor* tensor, const char* name) {
    const auto extent = [&](int dimension) { return static_cast<std::size_t>(tensor->ne[dimension]); };
    if (tensor->type != GGML_TYPE_F32 || tensor->nb[0] != sizeof(float) || tensor->nb[1] != extent(0) * sizeof(float) ||
        tensor->nb[2] % sizeof(float) != 0 || tensor->ne[3] != 1)
      kvc::fail(kvc::ErrorCode::shape_mismatch,
                std::string("AttentionOperator: ") + name + " must be f32, with the heads of a token side by side");
    return {static_cast<const float*>(tensor->data), extent(2), extent(0) * extent(1), tensor->nb[2] / sizeof(float)};
  }

  /// All threads come here with the same node, and meet behind it.
  static void compute(ggml_tensor* node, int thread, int threads, void* layer) {
    const auto& [self, index] = *static_cast<const Layer*>(layer);
    if (self->failure_) return;
    std::exception_ptr failure;
    try {
      self->team_.run(static_cast<std::size_t>(thread), static_cast<std::size_t>(threads),
                      [&, to = self, at = index] { to->attend(at, node); });
    } catch (...) {
      failure = std::current_exception();
    }
    if (failure) self->failure_ = failure;  // of the first thread; the others have left
  }
  void attend(std::size_t layer, ggml_tensor* node) {
    const kvc::Tokens tokens{
        .q = rows_of(node->src[0], "q"), .k = rows_of(node->src[1], "k"), .v = rows_of(node->src[2], "v")};
    const kvc::Rows<float> out(static_cast<float*>(node->data), static_cast<std::size_t>(node->ne[1]),
                               static_cast<std::size_t>(node->ne[0]));
    if (feed_ == Feed::generated)
      cache_->decode(layer, tokens, out);
    else
      cache_->prefill(layer, tokens, out, feed_ == Feed::prompt);
  }

  kvc::TeamExecutor team_;
  kvc::CacheCore* cache_ = nullptr;
  Feed feed_ = Feed::prompt;
  std::vector<Layer> layers_;
  std::exception_ptr failure_;
};

}  // namespace ggml_example
