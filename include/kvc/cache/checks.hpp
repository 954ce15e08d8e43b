#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>

#include "kvc/cache/inside.hpp"
#include "kvc/kernels/dispatch.hpp"

// What cannot be done is refused before anything changes.
namespace kvc::inline KVC_ABI::cache {

inline std::size_t index_of(const Inside& in, HeadId id) {
  if (id.layer >= in.shape.layers || id.head >= in.shape.kv_heads)
    fail(ErrorCode::invalid_argument, {"HeadId: layer ", id.layer, ", head ", id.head, " is outside the cache's ",
                                       in.shape.layers, " layers of ", in.shape.kv_heads, " KV heads"});
  return id.layer * in.shape.kv_heads + id.head;
}

inline void check_layer(const Inside& in, std::size_t layer) {
  if (layer >= in.shape.layers)
    fail(ErrorCode::invalid_argument, {"layer: got ", layer, ", the cache has layers 0 to ", in.shape.layers - 1});
}

inline void check_no_drafts(const Inside& in, const char* call) {
  for (const LayerState& state : in.layers)
    if (state.drafted_tokens() != 0)
      fail(ErrorCode::invalid_argument,
           {call, ": drafted tokens are waiting; call accept() first, or accept(0), which drops them"});
}

/// Whether a prompt of the layer waits for its next part: policies keep queries and sums of it.
inline bool has_open_prompt(const Inside& in, std::size_t layer) {
  const LayerState& state = in.layers[layer];
  if (state.prompt_tokens != 0 || state.window_tokens != 0) return true;
  for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head)
    for (const auto& memory : in.memory[head].states)
      if (memory->has_prompt()) return true;
  return false;
}

/// An argument of a call.
struct Argument {
  const char *call, *name;
  std::size_t first_row = 0;  ///< number in the argument of the first row that is looked at
};

/// Refuses rows that are not [count, dim], or that would run into each other.
template <class T>
void check_rows(const Argument& argument, const Rows<T>& rows, std::size_t count, std::size_t dim) {
  if (rows.count != count || rows.dim != dim || (rows.data == nullptr && count != 0))
    fail(ErrorCode::shape_mismatch,
         {argument.call, ": ", argument.name, ": got [", rows.count, ", ", rows.dim, "]",
          rows.data == nullptr ? " without data" : "", ", expected [", count, ", ", dim, "]"});
  if (rows.stride < dim && count > 1)
    fail(ErrorCode::shape_mismatch,
         {argument.call, ": ", argument.name, ": stride (", rows.stride, ") is smaller than a row (", dim, ")"});
}

/// Refuses a row that has a number beyond `limit`.
[[noreturn, gnu::cold]] inline void refuse_row(const Argument& argument, const ConstRows& rows, std::size_t row,
                                               float limit) {
  std::size_t column = 0;
  while (std::fabs(rows[row][column]) <= limit) ++column;
  const float value = rows[row][column];
  const std::string place =
      joined({argument.call, ": ", argument.name, ": row ", argument.first_row + row, ", column ", column, " is "});
  if (!std::isfinite(value))
    fail(ErrorCode::non_finite, {place, std::isnan(value) ? "NaN" : "infinite", "; nothing was appended"});
  fail(ErrorCode::non_finite,
       {place, value, ", beyond ", limit,
        ", the most that the formats of the layer hold (Codec::limit), or that its products stay finite with; "
        "CacheOptions::dense = {Scalar::f32} holds more than f16, and so does f32 metadata of a "
        "quantizer; nothing was appended"});
}

/// Refuses NaN and infinity, and what the format of the rows cannot hold: a magnitude above `limit`.
inline void check_values(const Argument& argument, const ConstRows& rows, float limit) {
  for (std::size_t row = 0; row < rows.count; ++row)
    if (!kernels::active().all_within(rows[row].data(), rows.dim, limit)) refuse_row(argument, rows, row, limit);
}

/// The largest magnitude of a layer's keys, or values: what their formats hold, and no more than sums stay finite with. Weights
/// of at most 2^31 tokens add up 2^31 times a value; keys leave queries of up to 2^28 / head_dim their room (query_limit).
inline float layer_limit(const Inside& in, std::size_t layer, Role role) {
  float limit = role == Role::key ? 0x1p100f : 0x1p96f;
  for (const HeadStore& store : in.heads_of(layer))
    limit = std::min(limit, role == Role::key ? store.key_limit() : store.value_limit());
  return limit;
}
/// Notes the limits of a layer for the plans of this call: its heads judge and carry out plans on several threads, so none of them
/// may look at the others then.
inline void note_limits(Inside& in, std::size_t layer) noexcept {
  in.layers[layer].key_limit = layer_limit(in, layer, Role::key);
  in.layers[layer].value_limit = layer_limit(in, layer, Role::value);
}
/// The largest magnitude of a query whose product with every key of the layer is finite.
inline float query_limit(const Inside& in, std::size_t layer) {
  return std::numeric_limits<float>::max() / layer_limit(in, layer, Role::key) / static_cast<float>(in.shape.head_dim);
}

inline void check_positions(const Inside& in, const char* call, std::size_t layer, const Tokens& tokens) {
  const std::size_t count = tokens.k.count;
  if (!tokens.positions.empty() && tokens.positions.size() != count)
    fail(ErrorCode::shape_mismatch, {call, ": Tokens::positions: got ", tokens.positions.size(),
                                     ", expected one per token (", count, ") or none"});
  constexpr Position Largest = std::numeric_limits<Position>::max();
  Position last = in.layers[layer].next_position - 1;
  for (const Position position : tokens.positions) {
    if (position <= last)
      fail(ErrorCode::invalid_argument, {call, ": Tokens::positions: ", position, " does not come after ", last});
    last = position;
  }
  if (last == Largest)
    fail(ErrorCode::invalid_argument, {call, ": Tokens::positions: ", last, " leaves no position for the next token"});
  if (tokens.positions.empty() && count >= static_cast<std::size_t>(std::int64_t{Largest} - last))
    fail(ErrorCode::invalid_argument, {call, ": there are not enough positions for ", count, " tokens after position ",
                                       last, ": the largest is ", Largest});
}

inline void check_scores(const Inside& in, const char* call, const Tokens& tokens) {
  if (!in.demands.external_scores) return;
  const std::size_t wanted = tokens.k.count * in.shape.kv_heads;
  if (tokens.scores.size() != wanted)
    fail(ErrorCode::missing_feed, {call, ": Tokens::scores: got ", tokens.scores.size(),
                                   " numbers, the policy needs external scores [tokens, kv_heads] = ", wanted});
  for (std::size_t i = 0; i < wanted; ++i)
    if (std::isinf(tokens.scores[i]) && tokens.scores[i] > 0)
      fail(ErrorCode::non_finite,
           {call, ": Tokens::scores: number ", i, " is infinite, which would protect its token from every eviction"});
}

/// Refuses an `lse` that is not [count, query_heads], and one of an attention that nobody computes.
inline void check_lse(const Inside& in, const char* call, std::span<const float> lse, std::size_t count,
                      const Rows<float>& out) {
  if (lse.empty()) return;
  if (lse.size() != count * in.shape.query_heads)
    fail(ErrorCode::shape_mismatch, {call, ": lse: got ", lse.size(),
                                     " numbers, expected [tokens, query_heads] = ", count * in.shape.query_heads});
  if (out.data == nullptr)
    fail(ErrorCode::invalid_argument, {call, ": lse: without `out` there is no attention that it could be of"});
}

/// Layers are fed in order: none may be ahead of the one below it.
inline void check_order(const Inside& in, const char* call, std::size_t layer, std::size_t count) {
  if (layer == 0) return;
  const std::size_t here = in.layers[layer].seen, below = in.layers[layer - 1].seen;
  if (here + count > below)
    fail(ErrorCode::invalid_argument,
         {call, ": layer ", layer, " would hold ", here + count, " tokens, but layer ", layer - 1, " has seen ", below,
          ": layers are fed in order, each with the same tokens"});
}

/// Everything that can be wrong about the arguments of prefill, decode, draft and probe. `stays`: whether the tokens do.
/// `first_row`: the number of the first token in the arguments that the engine gave.
inline void check_tokens(const Inside& in, const char* call, std::size_t layer, const Tokens& tokens,
                         const Rows<float>& out, bool out_optional, bool stays = true, std::size_t first_row = 0) {
  const CacheShape& shape = in.shape;
  check_layer(in, layer);
  const std::size_t count = tokens.k.count;
  check_rows({call, "q"}, tokens.q, count, shape.query_heads * shape.head_dim);
  check_rows({call, "k"}, tokens.k, count, shape.kv_heads * shape.head_dim);
  check_rows({call, "v"}, tokens.v, count, shape.kv_heads * shape.values_dim());
  if (!(out_optional && out.data == nullptr))
    check_rows({call, "out"}, out, count, shape.query_heads * shape.values_dim());
  check_order(in, call, layer, stays ? count : 0);
  check_positions(in, call, layer, tokens);
  check_scores(in, call, tokens);
  if (in.options.check_finite) {
    check_values({call, "q", first_row}, tokens.q, query_limit(in, layer));
    check_values({call, "k", first_row}, tokens.k, layer_limit(in, layer, Role::key));
    check_values({call, "v", first_row}, tokens.v, layer_limit(in, layer, Role::value));
  }
}

}  // namespace kvc::inline KVC_ABI::cache
