#pragma once
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// Keeps every token: the baseline. `type` chooses the element type; `bits` quantizes every token at once, keys and
/// values alike along the channels of one token, with nothing left dense: what engines call a q8 or q4 cache. `ggml` does
/// so in a type of llama.cpp (its --cache-type-k and --cache-type-v).
struct Full {
  std::optional<Scalar> type = std::nullopt;
  unsigned bits = 0;
  std::size_t group = 32;
  Fit fit = Fit::min_max;
  std::optional<GgmlType> ggml = std::nullopt;
  std::optional<GgmlType> value_ggml = std::nullopt;
  static constexpr EqualSlots equal_slots = EqualSlots::cache;

  static constexpr PolicyName name{"full", "Keeps every token, in dense rows or quantized."};
  static constexpr auto parameters() {
    return list(
        parameter("type", &Full::type, "The element type of dense rows; unset, it is the cache's own."),
        parameter("bits", &Full::bits, "With 8, 4, 3 or 2 every token is quantized at once; with 0 none is."),
        parameter("group", &Full::group, "So many neighbouring channels share a scale when bits is given."),
        parameter("fit", &Full::fit, "How the minimum of such a group is chosen."),
        parameter("ggml", &Full::ggml, "Every token is quantized at once to this cache type of llama.cpp."),
        parameter("value_ggml", &Full::value_ggml, "The type of the values, where it is not that of the keys."));
  }

  Streams quantize(HeadId, const CacheShape&) const {
    Streams streams;
    if (ggml) {
      streams.key.format = GgmlBlocks{*ggml};
      streams.value.format = GgmlBlocks{value_ggml.value_or(*ggml)};
    } else if (bits) {
      streams.key.format = streams.value.format = quantized();
    } else if (type) {
      streams.key.format = streams.value.format = Dense{*type};
    }
    return streams;
  }

  /// Throws Error unless at most one of `type`, `bits` and `ggml` is given, and rows of `shape` can be encoded.
  void validate(const CacheShape& shape) const {
    if (value_ggml && !ggml)
      fail(ErrorCode::invalid_argument, "Full: value_ggml is of values beside keys of a ggml type; give ggml too");
    if (int{type.has_value()} + int{bits != 0} + int{ggml.has_value()} > 1)
      fail(ErrorCode::invalid_argument,
           "Full: type is of dense rows, bits of quantized ones, ggml of llama.cpp's; give one of them");
    if (ggml) {
      GgmlBlocks{*ggml}.validate(shape.head_dim);
      GgmlBlocks{value_ggml.value_or(*ggml)}.validate(shape.values_dim());
    }
    if (bits == 0) return;
    quantized().validate(shape.head_dim);
    quantized().validate(shape.values_dim());
  }

 private:
  GroupQuant quantized() const { return {.bits = bits, .axis = Axis::token, .group = group, .fit = fit}; }
};

}  // namespace kvc::inline KVC_ABI
