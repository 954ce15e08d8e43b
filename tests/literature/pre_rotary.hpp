#pragma once
#include <memory>

#include "codec/pre_rotary_codec.hpp"
#include "kvc/codec/group_quant.hpp"
#include "kvc/policy/policy.hpp"

namespace literature {
using namespace kvc;

/// Keys as KVQuant stores them (Hooper et al., "KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache
/// Quantization", arXiv 2401.18079): quantized per channel BEFORE the rotary embedding, which would mix channels of
/// different size; values per token. Levels are evenly spaced here; theirs come from a calibration.
struct PreRotary {
  unsigned bits = 4;
  std::size_t group = 32, sinks = 0;

  static constexpr PolicyName name{"pre_rotary", "Quantizes keys as they were before the rotary embedding."};
  static constexpr auto parameters() {
    return list(parameter("bits", &PreRotary::bits, "2, 3, 4 or 8."),
                parameter("group", &PreRotary::group, "So many neighbouring elements share a scale."),
                parameter("sinks", &PreRotary::sinks, "So many first slots stay dense."));
  }
  Streams quantize(HeadId, const CacheShape& shape) const {
    const auto plain = std::make_shared<const GroupQuantCodec>(format(Axis::channel), Role::key, shape.head_dim);
    const auto keys = std::make_shared<const PreRotaryCodec>(plain, shape.rotary);
    return {.key = {.format = keys, .sinks = sinks, .batch = group},
            .value = {.format = format(Axis::token), .sinks = sinks}};
  }
  void validate(const CacheShape& shape) const {
    format(Axis::channel).validate(shape.head_dim);
    format(Axis::token).validate(shape.values_dim());
    if (shape.rotary.inv_freq.empty())
      fail(ErrorCode::missing_feed, "PreRotary: it needs CacheShape::rotary, which is empty");
  }

 private:
  GroupQuant format(Axis axis) const { return {.bits = bits, .axis = axis, .group = group}; }
};

}  // namespace literature
