#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "kvc/error.hpp"
#include "kvc/views.hpp"

namespace kvc::inline KVC_ABI {

/// Index of a token in the original text; it survives eviction.
using Position = std::int32_t;

/// One KV head of one layer of a sequence.
struct HeadId {
  std::uint32_t layer = 0, head = 0;
  friend bool operator==(HeadId, HeadId) = default;
};

/// The model's rotary embedding: pair i of a position-m vector is rotated by m * inv_freq[i]. Empty: no rotary.
struct Rotary {
  std::vector<float> inv_freq;  ///< one entry per rotated pair, head_dim / 2 or fewer (partial rotary)
  bool interleaved = false;     ///< pairs (2i, 2i+1); otherwise (i, i + inv_freq.size()), the "rotate-half" form

  /// The unscaled table base^(-2i/dim) of a fully rotated head.
  static Rotary standard(std::size_t head_dim, double base = 10000.0, bool interleaved = false) {
    Rotary rotary{{}, interleaved};
    for (std::size_t i = 0; i < head_dim / 2; ++i)
      rotary.inv_freq.push_back(static_cast<float>(std::pow(base, -2.0 * double(i) / double(head_dim))));
    return rotary;
  }
};

/// What may differ from layer to layer.
struct LayerShape {
  /// A sliding window: the query of position p sees positions p - window + 1 to p, its own among them. 0: all up to p. Tokens
  /// that no later query can see are let go of when the pass ends.
  Position window = 0;
  /// Per query head, a learned logit that takes part in the softmax and has no value (gpt-oss). It is used as it is, without
  /// scale and cap. Empty: none.
  std::vector<float> sink_logits = {};
};

/// The tensors of the model that the cache serves.
struct CacheShape {
  std::size_t layers = 1, query_heads = 1, kv_heads = 1, head_dim = 64;
  std::size_t value_dim = 0;  ///< 0: head_dim
  float scale = 0;            ///< of the logits; 0: 1/sqrt(head_dim)
  float softcap = 0;          ///< logits become softcap * tanh(logit / softcap); 0: no cap
  Rotary rotary = {};         ///< lets the core un-rotate, re-rotate and place tokens at in-cache positions
  std::vector<LayerShape> each_layer = {};  ///< one per layer; empty: no layer has anything of its own

  /// More than any model has; products of these numbers do not overflow.
  static constexpr std::size_t MostHeads = std::size_t{1} << 20, MostDim = std::size_t{1} << 16;

  /// Query heads that share a KV head; query head h reads KV head h / group().
  std::size_t group() const { return query_heads / kv_heads; }
  std::size_t values_dim() const { return value_dim ? value_dim : head_dim; }
  std::size_t heads() const { return layers * kv_heads; }
  Position window(std::size_t layer) const { return each_layer.empty() ? 0 : each_layer[layer].window; }
  bool has_windows() const {
    return std::any_of(each_layer.begin(), each_layer.end(), [](const LayerShape& own) { return own.window != 0; });
  }
  std::span<const float> sink_logits(std::size_t layer) const {
    return each_layer.empty() ? std::span<const float>() : std::span<const float>(each_layer[layer].sink_logits);
  }
  float logit_scale() const { return scale > 0 ? scale : 1.0f / std::sqrt(static_cast<float>(head_dim)); }

  /// Throws Error unless every field is usable; called by the constructors that take a shape.
  [[gnu::cold]] void validate() const {
    const auto at_most = [&](const char* name, std::size_t value, std::size_t most) {
      if (value > most) refuse({name, " must be at most ", most, ", got ", value});
    };
    if (layers == 0 || kv_heads == 0 || query_heads == 0) refuse({"layers, query_heads and kv_heads must be positive"});
    at_most("layers", layers, MostHeads);
    at_most("query_heads", query_heads, MostHeads);
    at_most("kv_heads", kv_heads, MostHeads);
    at_most("layers * kv_heads", heads(), MostHeads);
    at_most("head_dim", head_dim, MostDim);
    at_most("value_dim", value_dim, MostDim);
    if (query_heads % kv_heads != 0)
      refuse({"query_heads (", query_heads, ") must be a multiple of kv_heads (", kv_heads, ")"});
    if (group() > 64) refuse({"at most 64 query heads may share a KV head, got ", group()});
    if (head_dim == 0 || head_dim % 8 != 0) refuse({"head_dim must be a positive multiple of 8, got ", head_dim});
    if (values_dim() % 8 != 0) refuse({"value_dim must be a multiple of 8, got ", value_dim});
    if (rotary.inv_freq.size() * 2 > head_dim) refuse({"rotary has more pairs than head_dim / 2"});
    for (std::size_t i = 0; i < rotary.inv_freq.size(); ++i)
      if (!std::isfinite(rotary.inv_freq[i])) refuse({"rotary.inv_freq[", i, "] is not finite"});
    if (!std::isfinite(scale) || scale < 0 || !std::isfinite(softcap) || softcap < 0)
      refuse({"scale and softcap must be finite and not negative"});
    validate_layers();
  }

 private:
  [[noreturn, gnu::cold]] static void refuse(std::initializer_list<Fragment> sentence) {
    fail(ErrorCode::invalid_argument, {"CacheShape: ", joined(sentence)});
  }
  [[gnu::cold]] void validate_layers() const {
    if (!each_layer.empty() && each_layer.size() != layers)
      refuse({"each_layer must be empty or have one entry per layer (", layers, "), got ", each_layer.size()});
    for (std::size_t layer = 0; layer < each_layer.size(); ++layer) {
      const LayerShape& own = each_layer[layer];
      if (own.window < 0) refuse({"each_layer[", layer, "].window must not be negative, got ", own.window});
      if (!own.sink_logits.empty() && own.sink_logits.size() != query_heads)
        refuse({"each_layer[", layer, "].sink_logits must be empty or have one entry per query head (", query_heads,
                "), got ", own.sink_logits.size()});
      for (std::size_t head = 0; head < own.sink_logits.size(); ++head)
        if (!std::isfinite(own.sink_logits[head]))
          refuse({"each_layer[", layer, "].sink_logits[", head, "] is not finite"});
    }
  }
};

/// What one call appends to one layer, with the rotary embedding already applied.
struct Tokens {
  ConstRows q;                               ///< [tokens, query_heads * head_dim]
  ConstRows k;                               ///< [tokens, kv_heads * head_dim]
  ConstRows v;                               ///< [tokens, kv_heads * value_dim]
  std::span<const float> scores = {};        ///< external scores [tokens, kv_heads]; only if a policy asks for them
  std::span<const Position> positions = {};  ///< strictly ascending; empty: they continue from the last token seen
};

}  // namespace kvc::inline KVC_ABI
