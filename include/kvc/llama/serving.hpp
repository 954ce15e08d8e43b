#pragma once
/// The side of LlamaCache that llama.cpp calls.
#include "kvc/llama.hpp"

namespace kvc::inline KVC_ABI {

/// llama.cpp asks about every node before it computes a stretch of them. None is asked to be computed alone: a node
/// that kvc serves becomes a call of this class and stays one, for llama.cpp uses its graphs again.
inline bool LlamaCache::see(ggml_tensor* node, bool ask) {
  if (!ask || failed_ || mode_ == Mode::detached) return !ask;
  guarded([&](LlamaCache&) {
    if (mode_ == Mode::learning) return survey_.look_at(node);
    if (mode_ == Mode::resting)
      fail(ErrorCode::invalid_argument,
           "LlamaCache: llama_decode() was called on a context that kvc serves: call LlamaCache::decode() instead");
    if (llama::stores_rows(node) && stores_.contains(llama::root(node)))
      replace(node, store_call_);
    else if (node->op == GGML_OP_FLASH_ATTN_EXT && stores_.contains(llama::root(node->src[1])))
      replace(node, attend_call_);
  });
  return false;
}

inline void LlamaCache::replace(ggml_tensor* node, const ggml_tensor& call) {
  const ggml_tensor* where = node->view_src ? node->view_src : node;
  if (!where->buffer || !ggml_backend_buffer_is_host(where->buffer))
    fail(ErrorCode::incompatible, {"LlamaCache: \"", node->name,
                                   "\" is computed on a device: kvc serves the CPU backend; "
                                   "leave llama_context_params::offload_kqv off"});
  std::memcpy(node->op_params, call.op_params, sizeof node->op_params);
  node->op = GGML_OP_CUSTOM;
}

/// In the place of llama.cpp's storing: keeps the new rows, of all sequences of the ubatch, until the layer attends.
inline void LlamaCache::store(const ggml_tensor* node) {
  const Store& to = stores_.at(llama::root(node));
  const ggml_tensor* from = node->src[0];
  const std::size_t width = llama::extent(from, 0), count = static_cast<std::size_t>(ggml_nrows(from));
  const std::size_t expected = shape_.kv_heads * (to.role == 0 ? shape_.head_dim : shape_.values_dim());
  if (width != expected || llama::extent(from, 1) != count)
    fail(ErrorCode::shape_mismatch,
         {"LlamaCache: \"", node->name, "\" stores rows of ", width, ", expected ", expected});
  LayerRows& layer = stored_[to.layer];
  std::vector<float>& rows = layer.rows[to.role];
  if (rows.empty() && !spare_.empty()) {
    rows = std::move(spare_.back());
    spare_.pop_back();
  }
  if (rows.size() < count * width) rows.resize(count * width);
  layer.count[to.role] = count;
  for (std::size_t row = 0; row < count; ++row) {
    const char* data = static_cast<const char*>(from->data) + row * from->nb[1];
    float* copy = rows.data() + row * width;
    if (from->type == GGML_TYPE_F32)
      std::memcpy(copy, data, width * sizeof(float));
    else
      ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(data), copy, static_cast<std::int64_t>(width));
  }
}

/// The queries as rows [all tokens, query_heads * head_dim]: as they lie, or copied. They are [head_dim, tokens, heads,
/// sequences].
inline ConstRows LlamaCache::queries_of(const ggml_tensor* q) {
  const std::size_t dim = llama::extent(q, 0), tokens = llama::extent(q, 1), heads = llama::extent(q, 2);
  const std::size_t sequences = llama::extent(q, 3), width = heads * dim;
  if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float))
    fail(ErrorCode::incompatible,
         {"LlamaCache: the queries \"", q->name, "\" are ", ggml_type_name(q->type), ", not f32"});
  const char* data = static_cast<const char*>(q->data);
  if (q->nb[2] == dim * sizeof(float) && q->nb[1] % sizeof(float) == 0 &&
      (sequences == 1 || q->nb[3] == tokens * q->nb[1]))
    return {reinterpret_cast<const float*>(data), tokens * sequences, width, q->nb[1] / sizeof(float)};
  if (gathered_.size() < tokens * sequences * width) gathered_.resize(tokens * sequences * width);
  float* to = gathered_.data();
  for (std::size_t sequence = 0; sequence < sequences; ++sequence)
    for (std::size_t token = 0; token < tokens; ++token)
      for (std::size_t head = 0; head < heads; ++head, to += dim)
        std::memcpy(to, data + sequence * q->nb[3] + token * q->nb[1] + head * q->nb[2], dim * sizeof(float));
  return {gathered_.data(), tokens * sequences, width};
}

/// In the place of llama.cpp's attention.
inline void LlamaCache::attend(ggml_tensor* node) {
  const std::size_t layer = stores_.at(llama::root(node->src[1])).layer;
  const ggml_tensor* q = node->src[0];
  if (layer != next_layer_)
    fail(ErrorCode::incompatible, {"LlamaCache: layer ", layer, " attends where layer ", next_layer_, " was expected"});
  if (layer == 0) begin_pass(node);
  if (layer == llama::first_alike(shape_, layer)) check_masks(node->src[3], shape_.window(layer));
  const std::size_t all = pass_tokens_ * pass_.size();
  LayerRows& rows = stored_[layer];
  if (llama::extent(q, 1) != pass_tokens_ || llama::extent(q, 3) != pass_.size() || rows.count[0] != all ||
      rows.count[1] != all)
    fail(ErrorCode::shape_mismatch,
         {"LlamaCache: layer ", layer, " has queries of ", llama::extent(q, 1) * llama::extent(q, 3), " tokens, ",
          rows.count[0], " keys and ", rows.count[1], " values, but the ubatch has ", all, " tokens"});
  const std::size_t out_width = shape_.query_heads * shape_.values_dim();
  serve(layer, queries_of(q), {rows.rows[0].data(), all, shape_.kv_heads * shape_.head_dim},
        {rows.rows[1].data(), all, shape_.kv_heads * shape_.values_dim()},
        {static_cast<float*>(node->data), all, out_width});
  rows.count[0] = rows.count[1] = 0;
  for (std::vector<float>& used : rows.rows) spare_.push_back(std::exchange(used, {}));
  next_layer_ = layer + 1;
  if (next_layer_ < shape_.layers) return;
  next_layer_ = 0;
  for (const llama_seq_id id : pass_) feeds_.feeds[static_cast<std::size_t>(id)].done += pass_tokens_;
}

/// Finds out which tokens an ubatch has. Its streams are sequences in ascending order.
inline void LlamaCache::begin_pass(const ggml_tensor* node) {
  const ggml_tensor *keys = node->src[1], *cells = llama::root(keys);
  const std::size_t streams = llama::extent(node->src[0], 3);
  const std::size_t first = cells->ne[2] > 1 ? keys->view_offs / cells->nb[2] : 0;
  pass_tokens_ = llama::extent(node->src[0], 1);
  pass_.clear();
  for (std::size_t stream = 0; stream < streams; ++stream) {
    const std::size_t id = first + stream;
    const llama::Feed* feed = id < feeds_.feeds.size() ? &feeds_.feeds[id] : nullptr;
    if (!feed || feed->positions.size() - feed->done < pass_tokens_)
      fail(ErrorCode::incompatible, {"LlamaCache: the ubatch has ", pass_tokens_, " tokens of sequence ", id,
                                     ", the batch has ", feed ? feed->positions.size() - feed->done : 0});
    pass_.push_back(static_cast<llama_seq_id>(id));
  }
}

/// Layers with the same window have the same mask: it is looked at where the first of them attends.
inline void LlamaCache::check_masks(const ggml_tensor* mask, Position window) const {
  for (std::size_t stream = 0; stream < pass_.size(); ++stream) {
    const auto id = static_cast<std::size_t>(pass_[stream]);
    const std::size_t seen = feeds_.feeds[id].done + (shared_ ? sequences_[id].tokens : 0);
    check_mask(mask, stream, seen, pass_tokens_, window);
  }
}

/// Refuses what is not plain causal attention: a token must see all that its sequence has in llama.cpp's cache, or as much of it
/// as stands in the window, itself, and nothing else, without any bias. The mask is [cells, tokens, 1, streams].
inline void LlamaCache::check_mask(const ggml_tensor* mask, std::size_t stream, std::size_t seen, std::size_t tokens,
                                   Position window) const {
  const std::size_t cells = llama::extent(mask, 0), size = ggml_type_size(mask->type);
  for (std::size_t token = 0; token < tokens; ++token) {
    const char* row = static_cast<const char*>(mask->data) + stream * mask->nb[3] + token * mask->nb[1];
    std::size_t visible = 0, biased = 0;
    for (std::size_t cell = 0; cell < cells; ++cell) {
      if (mask->type == GGML_TYPE_F16) {
        std::uint16_t bits;
        std::memcpy(&bits, row + cell * size, sizeof bits);
        visible += (bits & 0x7fff) == 0;
        biased += (bits & 0x7fff) != 0 && bits != 0xfc00;  // minus infinity
      } else {
        std::uint32_t bits;
        std::memcpy(&bits, row + cell * size, sizeof bits);
        visible += (bits & 0x7fffffff) == 0;
        biased += (bits & 0x7fffffff) != 0 && bits != 0xff800000;
      }
    }
    const std::size_t before = seen + token + 1;
    const std::size_t expected = window == 0 ? before : std::min(before, static_cast<std::size_t>(window));
    if (visible != expected || biased != 0)
      fail(ErrorCode::incompatible,
           {"LlamaCache: a token sees ", visible, " cells of llama.cpp's cache, and ", biased, " with a bias, where ",
            expected, " are expected: attention is not causal, or its mask is not plain"});
  }
}

inline void LlamaCache::serve(std::size_t layer, ConstRows q, ConstRows k, ConstRows v, Rows<float> out) {
  std::vector<CacheCore*> caches;
  bool together = pass_.size() > 1 && pass_tokens_ == 1;
  for (const llama_seq_id id : pass_) {
    caches.push_back(sequences_[static_cast<std::size_t>(id)].cache.get());
    const llama::Feed& feed = feeds_.feeds[static_cast<std::size_t>(id)];
    together &= !feed.prompt && !feed.draft;
  }
  std::vector<Position> positions;
  if (together) {
    for (const llama_seq_id id : pass_) {
      const llama::Feed& feed = feeds_.feeds[static_cast<std::size_t>(id)];
      positions.push_back(feed.positions[feed.done]);
    }
    return decode_batch(caches, layer, {.q = q, .k = k, .v = v, .positions = positions}, out, *options_.executor);
  }
  for (std::size_t i = 0; i < pass_.size(); ++i) {
    const llama::Feed& feed = feeds_.feeds[static_cast<std::size_t>(pass_[i])];
    const std::size_t begin = i * pass_tokens_;
    const Tokens tokens{.q = q.subrows(begin, pass_tokens_),
                        .k = k.subrows(begin, pass_tokens_),
                        .v = v.subrows(begin, pass_tokens_),
                        .positions = std::span(feed.positions).subspan(feed.done, pass_tokens_)};
    if (feed.prompt)
      caches[i]->prefill(layer, tokens, out.subrows(begin, pass_tokens_),
                         feed.ends && feed.done + pass_tokens_ == feed.positions.size());
    else if (feed.draft)
      caches[i]->draft(layer, tokens, out.subrows(begin, pass_tokens_));
    else
      caches[i]->decode(layer, tokens, out.subrows(begin, pass_tokens_));
  }
}

}  // namespace kvc::inline KVC_ABI
