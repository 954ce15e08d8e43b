#pragma once
#include <cstddef>
#include <optional>

#include "kvc/policy/verbs.hpp"

namespace kvc {

/// Keeps every token: the baseline. `type` chooses the element type; `bits` quantizes every token at once, keys and
/// values alike along the channels of one token, with nothing left dense: what engines call a q8 or q4 cache.
struct Full {
  std::optional<Scalar> type = std::nullopt;  ///< f32, f16 or bf16 rows; none: the cache's own type
  unsigned bits = 0;                          ///< 8, 4, 3 or 2: quantized; 0: dense
  std::size_t group = 32;                     ///< channels that share a scale when quantized
  static constexpr bool equal_slots = true;

  Streams quantize(HeadId) const {
    Stream stream;
    if (bits)
      stream.format = GroupQuant{.bits = bits, .axis = Axis::token, .group = group};
    else if (type)
      stream.format = Dense{*type};
    return {stream, stream};
  }

  /// Throws Error unless `bits` and `group` can be encoded and leave a use for `type`.
  void validate(const CacheShape& shape) const {
    if (bits == 0) return;
    if (type)
      fail(ErrorCode::invalid_argument, "Full: type is of dense rows, bits of quantized ones; give one of them");
    const GroupQuant quant{.bits = bits, .axis = Axis::token, .group = group};
    quant.validate(shape.head_dim);
    quant.validate(shape.values_dim());
  }
};

}  // namespace kvc
