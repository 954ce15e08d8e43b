#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>

#include "kvc/error.hpp"

namespace kvc {

/// Element type of unquantized rows and of quantization metadata.
enum class Scalar : std::uint8_t { f32, f16, bf16 };

constexpr std::size_t scalar_bytes(Scalar type) {
  return type == Scalar::f32 ? 4 : 2;
}

/// Rows as they are, in one of three element types.
struct Dense {
  Scalar type = Scalar::f16;
  friend bool operator==(const Dense&, const Dense&) = default;
};

/// Along which axis consecutive elements share one scale.
enum class Axis : std::uint8_t {
  channel,  ///< `group` consecutive tokens of one channel ("per channel", KIVI's keys)
  token,    ///< `group` consecutive channels of one token ("per token", KIVI's values)
};

/// Asymmetric group quantization: value = code * scale + minimum, code = round_half_even((x - minimum) / scale) in
/// [0, 2^bits), minimum and scale = (max - min) / (2^bits - 1) of the group. A constant group has scale 0 and code 0.
/// Codes are computed against the minimum and scale as stored, so f16 metadata costs no systematic error.
struct GroupQuant {
  unsigned bits = 4;  ///< 2, 3, 4 or 8; with 3, groups along p (see kernels::PackedLayout) are padded to multiples of 32
  Axis axis = Axis::channel;
  std::size_t group = 32;         ///< elements that share a scale; KIVI's default
  Scalar metadata = Scalar::f16;  ///< of scale and minimum: f16 or f32
  friend bool operator==(const GroupQuant&, const GroupQuant&) = default;

  /// Throws Error unless the parameters can be encoded for rows of `dim` channels.
  void validate(std::size_t dim) const {
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
      fail(ErrorCode::invalid_argument, "GroupQuant: bits must be 2, 3, 4 or 8, got " + std::to_string(bits));
    if (metadata == Scalar::bf16) fail(ErrorCode::invalid_argument, "GroupQuant: metadata must be f16 or f32");
    if (group == 0) fail(ErrorCode::invalid_argument, "GroupQuant: group must be positive");
    if (axis == Axis::token && dim % group != 0)
      fail(ErrorCode::invalid_argument, "GroupQuant: group (" + std::to_string(group) +
                                            ") must divide the head dimension (" + std::to_string(dim) + ")");
  }
};

class Codec;

/// How rows are laid out in bytes: one of the built-in formats or the user's own codec.
using Format = std::variant<Dense, GroupQuant, std::shared_ptr<const Codec>>;

}  // namespace kvc
