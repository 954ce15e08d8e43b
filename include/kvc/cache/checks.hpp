#pragma once
#include "kvc/cache/impl.hpp"

namespace kvc::inline KVC_ABI {

inline std::size_t CacheCore::Impl::index(HeadId id) const {
  if (id.layer >= shape_.layers || id.head >= shape_.kv_heads)
    fail(ErrorCode::invalid_argument, "HeadId: layer " + std::to_string(id.layer) + ", head " +
                                          std::to_string(id.head) + " is outside the cache's " +
                                          std::to_string(shape_.layers) + " layers of " +
                                          std::to_string(shape_.kv_heads) + " KV heads");
  return id.layer * shape_.kv_heads + id.head;
}

inline std::size_t CacheCore::Impl::stage_of(const void* policy) const {
  for (std::size_t stage = 0; stage < stages_.size(); ++stage)
    if (stages_[stage]->type() == policy) return stage;
  fail(ErrorCode::unknown_name, "the policy asked for is not a stage of this cache");
}

inline void CacheCore::Impl::check_layer(std::size_t layer) const {
  if (layer >= shape_.layers)
    fail(ErrorCode::invalid_argument,
         "layer: got " + std::to_string(layer) + ", the cache has layers 0 to " + std::to_string(shape_.layers - 1));
}

inline void CacheCore::Impl::check_no_drafts(const char* call) const {
  for (const LayerState& state : layers_)
    if (state.drafted_tokens != 0)
      fail(ErrorCode::invalid_argument, std::string(call) + ": drafted tokens are waiting; call accept() first");
}

inline void CacheCore::Impl::check_rows(const char* call, const char* name, const ConstRows& rows, std::size_t count,
                                        std::size_t dim) const {
  const std::string argument = std::string(call) + ": " + name;
  if (rows.count != count || rows.dim != dim || (rows.data == nullptr && count != 0))
    fail(ErrorCode::shape_mismatch, argument + ": got [" + std::to_string(rows.count) + ", " +
                                        std::to_string(rows.dim) + "]" + (rows.data == nullptr ? " without data" : "") +
                                        ", expected [" + std::to_string(count) + ", " + std::to_string(dim) + "]");
  if (rows.stride < dim && count > 1)
    fail(ErrorCode::shape_mismatch, argument + ": stride (" + std::to_string(rows.stride) +
                                        ") is smaller than a row (" + std::to_string(dim) + ")");
  if (!options_.check_finite) return;
  for (std::size_t row = 0; row < count; ++row) {
    if (kernels::active().all_finite(rows[row].data(), dim)) continue;
    std::size_t column = 0;
    while (std::isfinite(rows[row][column])) ++column;
    fail(ErrorCode::non_finite, argument + ": row " + std::to_string(row) + ", column " + std::to_string(column) +
                                    " is " + (std::isnan(rows[row][column]) ? "NaN" : "infinite") +
                                    "; nothing was appended");
  }
}

inline void CacheCore::Impl::check_tokens(const char* call, std::size_t layer, const Tokens& tokens,
                                          const Rows<float>& out, bool out_optional) const {
  check_layer(layer);
  const std::size_t count = tokens.k.count;
  check_rows(call, "q", tokens.q, count, shape_.query_heads * shape_.head_dim);
  check_rows(call, "k", tokens.k, count, shape_.kv_heads * shape_.head_dim);
  check_rows(call, "v", tokens.v, count, shape_.kv_heads * shape_.values_dim());
  if (!(out_optional && out.data == nullptr)) {
    const std::size_t dim = shape_.query_heads * shape_.values_dim();
    if (out.count != count || out.dim != dim || (out.data == nullptr && count != 0))
      fail(ErrorCode::shape_mismatch, std::string(call) + ": out: got [" + std::to_string(out.count) + ", " +
                                          std::to_string(out.dim) + "], expected [" + std::to_string(count) + ", " +
                                          std::to_string(dim) + "]");
  }
  if (needs_.external_scores && tokens.scores.size() != count * shape_.kv_heads)
    fail(ErrorCode::missing_feed, std::string(call) + ": Tokens::scores: got " + std::to_string(tokens.scores.size()) +
                                      " numbers, the policy needs external scores [tokens, kv_heads] = " +
                                      std::to_string(count * shape_.kv_heads));
  if (!tokens.positions.empty() && tokens.positions.size() != count)
    fail(ErrorCode::shape_mismatch, std::string(call) + ": Tokens::positions: got " +
                                        std::to_string(tokens.positions.size()) + ", expected one per token (" +
                                        std::to_string(count) + ") or none");
  Position last = layers_[layer].next_position - 1;
  for (const Position position : tokens.positions) {
    if (position <= last)
      fail(ErrorCode::invalid_argument, std::string(call) + ": Tokens::positions: " + std::to_string(position) +
                                            " does not come after " + std::to_string(last));
    last = position;
  }
  if (last == std::numeric_limits<Position>::max())
    fail(ErrorCode::invalid_argument,
         std::string(call) + ": Tokens::positions: " + std::to_string(last) + " leaves no position for the next token");
}

}  // namespace kvc
