#pragma once
#include <bit>
#include <memory>

#include "codec/hadamard_codec.hpp"
#include "kvc/codec/group_quant.hpp"
#include "kvc/policy/policy.hpp"

namespace literature {
using namespace kvc;

/// QuaRot's cache (Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", arXiv 2404.00456): keys and
/// values are turned by a Hadamard matrix, which spreads outliers over all channels, and then quantized token by token.
struct HadamardQuant {
  unsigned bits = 4;
  std::size_t group = 32, recent = 0;

  static constexpr PolicyName name{"hadamard", "Quantizes keys and values turned by a Hadamard matrix."};
  static constexpr auto parameters() {
    return list(parameter("bits", &HadamardQuant::bits, "2, 3, 4 or 8."),
                parameter("group", &HadamardQuant::group, "So many neighbouring channels share a scale."),
                parameter("recent", &HadamardQuant::recent, "So many newest slots stay dense."));
  }
  Streams quantize(HeadId, const CacheShape& shape) const {
    const auto stream = [&](Role role, std::size_t dim) {
      const auto inner = std::make_shared<const GroupQuantCodec>(format(), role, dim);
      return Stream{.format = std::make_shared<const HadamardCodec>(inner), .recent = recent};
    };
    return {.key = stream(Role::key, shape.head_dim), .value = stream(Role::value, shape.values_dim())};
  }
  void validate(const CacheShape& shape) const {
    for (const std::size_t dim : {shape.head_dim, shape.values_dim()}) {
      format().validate(dim);
      if (!std::has_single_bit(dim))
        fail(ErrorCode::invalid_argument, "HadamardQuant: heads must be a power of two wide");
    }
  }

 private:
  GroupQuant format() const { return {.bits = bits, .axis = Axis::token, .group = group}; }
};

}  // namespace literature
