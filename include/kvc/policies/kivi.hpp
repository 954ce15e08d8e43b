#pragma once
#include "kvc/codec/make.hpp"
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// KIVI (Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv 2402.02750): keys quantized
/// per channel, values per token, the newest tokens dense. Authors' code: jy-yuan/KIVI, models/llama_kivi.py and
/// quant/new_pack.py. Keys are sealed `residual` at a time once so many are dense (0 to residual - 1 stay dense); of
/// the values exactly the newest `residual` stay dense. Scales and minima are stored in their input type, fp16, as
/// here; `.metadata = Scalar::f32` is their code run in float. A constant group decodes exactly, where theirs divides 0
/// by 0. Behind a policy whose budget is not above `residual`, nothing is left to be sealed: KIVI then saves no bytes.
struct KIVI {
  unsigned bits = 2;
  std::optional<unsigned> key_bits = std::nullopt, value_bits = std::nullopt;
  std::size_t group = 32;
  std::size_t residual = 128;
  Scalar metadata = Scalar::f16;
  std::size_t sinks = 0;

  static constexpr PolicyName name{"kivi", "Quantizes keys per channel and values per token."};
  static constexpr auto parameters() {
    return list(
        parameter("bits", &KIVI::bits, "2, 3, 4 or 8; the authors advise 4 for models with grouped queries."),
        parameter("key_bits", &KIVI::key_bits, "The bits of the keys, where they are not those of the values."),
        parameter("value_bits", &KIVI::value_bits, "The bits of the values, where they are not those of the keys."),
        parameter("group", &KIVI::group, "So many elements share a scale."),
        parameter("residual", &KIVI::residual, "So many newest tokens stay dense; it must be a multiple of group."),
        parameter("metadata", &KIVI::metadata, "The element type of scales and minima, f16 or f32."),
        parameter("sinks", &KIVI::sinks,
                  "So many first slots stay dense; 5 behind razor_attention spares its compensation token."));
  }

  Streams quantize(HeadId, const CacheShape&) const {
    return {.key = {.format = format(key_bits, Axis::channel), .sinks = sinks, .recent = 0, .batch = residual},
            .value = {.format = format(value_bits, Axis::token), .sinks = sinks, .recent = residual, .batch = 1}};
  }

  /// Throws Error unless the groups divide the residual and the rows.
  void validate(const CacheShape& shape) const {
    require_between("KIVI: group", group, 1);
    require_between("KIVI: residual", residual, 1);
    require_between("KIVI: sinks", sinks, 0);
    format(key_bits, Axis::channel).validate(shape.head_dim);
    format(value_bits, Axis::token).validate(shape.values_dim());
    if (residual % group != 0)
      fail(ErrorCode::invalid_argument,
           {"KIVI: residual (", residual, ") must be a positive multiple of group (", group, ")"});
  }

 private:
  GroupQuant format(std::optional<unsigned> own, Axis axis) const {
    return {.bits = own.value_or(bits), .axis = axis, .group = group, .metadata = metadata};
  }
};

}  // namespace kvc::inline KVC_ABI
