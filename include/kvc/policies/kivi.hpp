#pragma once
#include <cstddef>
#include <optional>
#include <string>

#include "kvc/policy/verbs.hpp"

namespace kvc::inline KVC_ABI {

/// KIVI (Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv 2402.02750): keys quantized
/// per channel, values per token, the newest tokens dense. Authors' code: jy-yuan/KIVI, models/llama_kivi.py and
/// quant/new_pack.py. Keys are sealed `residual` at a time once so many are dense (0 to residual - 1 stay dense); of
/// the values exactly the newest `residual` stay dense. Scales and minima are stored in their input type, fp16, as
/// here; `.metadata = Scalar::f32` is their code run in float. A constant group decodes exactly, where theirs divides 0
/// by 0.
struct KIVI {
  unsigned bits = 2;  ///< 2, 3, 4 or 8; the authors advise 4 for grouped-query models
  std::optional<unsigned> key_bits = std::nullopt, value_bits = std::nullopt;  ///< where keys and values differ
  std::size_t group = 32;                                                      ///< elements that share a scale
  std::size_t residual = 128;     ///< newest tokens kept dense; a multiple of group
  Scalar metadata = Scalar::f16;  ///< of scales and minima: f16 or f32
  /// First slots that stay dense; the authors spare none. `RazorAttention{} | KIVI{.sinks = 5}` keeps its four sinks and
  /// the compensation token behind them dense, which would else be sealed anew whenever it changes.
  std::size_t sinks = 0;

  Streams quantize(HeadId) const {
    return {.key = {.format = format(key_bits, Axis::channel), .sinks = sinks, .recent = 0, .batch = residual},
            .value = {.format = format(value_bits, Axis::token), .sinks = sinks, .recent = residual, .batch = 1}};
  }

  /// Throws Error unless the groups divide the residual and the rows.
  void validate(const CacheShape& shape) const {
    format(key_bits, Axis::channel).validate(shape.head_dim);
    format(value_bits, Axis::token).validate(shape.values_dim());
    if (residual == 0 || residual % group != 0)
      fail(ErrorCode::invalid_argument, "KIVI: residual (" + std::to_string(residual) +
                                            ") must be a positive multiple of group (" + std::to_string(group) + ")");
  }

 private:
  GroupQuant format(std::optional<unsigned> own, Axis axis) const {
    return {.bits = own.value_or(bits), .axis = axis, .group = group, .metadata = metadata};
  }
};

}  // namespace kvc
