#pragma once
#include <cstring>
#include <memory>

#include "kvc/codec/codec.hpp"
#include "kvc/half.hpp"
#include "kvc/policy/policy.hpp"

namespace literature {
using namespace kvc;

/// NF4 (Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314, appendix E): 4 bits per
/// element name one of 16 levels, the quantiles of a normal distribution, times the largest magnitude of `group`
/// channels of a token.
class Nf4Codec final : public Codec {
 public:
  Nf4Codec(std::size_t dim, std::size_t group) : dim_(dim), group_(group) {}
  std::string name() const override { return "nf4-g" + std::to_string(group_); }
  std::size_t dim() const override { return dim_; }
  std::size_t block_bytes(std::size_t capacity) const override { return capacity * row_bytes(); }
  float limit() const override { return 65504.0f; }
  void encode(ConstRows rows, std::byte* block, std::size_t, std::size_t first) const override {
    for (std::size_t r = 0; r < rows.count; ++r) {
      auto* out = reinterpret_cast<std::uint8_t*>(block) + (first + r) * row_bytes();
      std::memset(out, 0, row_bytes());
      for (std::size_t begin = 0; begin < dim_; begin += group_) {
        float largest = 0;
        for (const float x : rows[r].subspan(begin, group_)) largest = std::max(largest, std::abs(x));
        const std::uint16_t half = to_half(largest);
        std::memcpy(out + dim_ / 2 + 2 * (begin / group_), &half, 2);
        const float scale = from_half(half);
        for (std::size_t c = begin; c < begin + group_; ++c)
          out[c / 2] |= static_cast<std::uint8_t>(nearest(scale > 0 ? rows[r][c] / scale : 0) << (c % 2 * 4));
      }
    }
  }
  void decode(const std::byte* block, std::size_t, std::size_t first, Rows<float> rows) const override {
    for (std::size_t r = 0; r < rows.count; ++r) {
      const auto* in = reinterpret_cast<const std::uint8_t*>(block) + (first + r) * row_bytes();
      for (std::size_t c = 0; c < dim_; ++c) {
        std::uint16_t half;
        std::memcpy(&half, in + dim_ / 2 + 2 * (c / group_), 2);
        rows[r][c] = from_half(half) * Levels[in[c / 2] >> (c % 2 * 4) & 15];
      }
    }
  }

  static constexpr float Levels[16] = {-1.0f,        -0.6961928f, -0.5250731f, -0.3949175f, -0.2844414f, -0.1847734f,
                                       -0.09105004f, 0.0f,        0.0795803f,  0.1609302f,  0.2461123f,  0.3379152f,
                                       0.4407098f,   0.562617f,   0.7229568f,  1.0f};

 private:
  std::size_t row_bytes() const { return dim_ / 2 + 2 * (dim_ / group_); }
  static unsigned nearest(float x) {
    unsigned best = 0;
    for (unsigned i = 1; i < 16; ++i)
      if (std::abs(x - Levels[i]) < std::abs(x - Levels[best])) best = i;
    return best;
  }
  std::size_t dim_, group_;
};

struct Nf4 {
  std::size_t group = 32, sinks = 0, recent = 0;

  static constexpr PolicyName name{"nf4", "Quantizes keys and values to the 16 levels of NF4."};
  static constexpr auto parameters() {
    return list(parameter("group", &Nf4::group, "So many neighbouring channels of a token share a scale."),
                parameter("sinks", &Nf4::sinks, "So many first slots stay dense."),
                parameter("recent", &Nf4::recent, "So many newest slots stay dense."));
  }
  Streams quantize(HeadId, const CacheShape& shape) const {
    const auto stream = [&](std::size_t dim) {
      return Stream{.format = std::make_shared<const Nf4Codec>(dim, group), .sinks = sinks, .recent = recent};
    };
    return {.key = stream(shape.head_dim), .value = stream(shape.values_dim())};
  }
  void validate(const CacheShape& shape) const {
    require_between("Nf4: group", group, 2);
    if (shape.head_dim % group != 0 || shape.values_dim() % group != 0 || group % 2 != 0)
      fail(ErrorCode::invalid_argument, "Nf4: group (" + std::to_string(group) + ") must be even and divide the head");
  }
};

}  // namespace literature
