#pragma once
#include <cstdint>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// How attention multiplies with quantized rows, where its kernels multiply integers. Dense rows are always multiplied
/// in f32.
enum class Arithmetic : std::uint8_t {
  exact,     ///< in f32: a relative error of 1e-6
  accurate,  ///< in integers: at most 5 % of the error that the format itself makes
  fast,      ///< in integers, queries and weights in one byte: up to 20 % of it at 2 bits, 40 % at 4; 3 and 8 bits as accurate
};

}  // namespace kvc
