#pragma once
#include <cstddef>
#include <cstdint>

#include "linear_kernels.hpp"

namespace engine {

/// Rows of activations in 8 bits: x = scale * code, one scale per block of 32.
/// Inside every 8 inputs the codes stand as 0 2 4 6 1 3 5 7, which is how nibbles come out of a panel's words.
struct IntegerRows {
  const std::int8_t* codes;  ///< [count, inputs]
  const float* scales;       ///< [count, blocks]
  const float* sums;         ///< [count, blocks]: scale * sum of the block's codes
  std::size_t count;
};

/// Inner loops in integer arithmetic, for panels of formats nibble and byte.
struct IntegerKernels {
  /// One row of `blocks` blocks; the scale is the largest magnitude over 127.
  void (*quantize)(const float* x, std::size_t blocks, std::int8_t* codes, float* scales, float* sums);
  /// out[row * out_stride + o] for all rows and the first `outputs` of the panel's 16.
  void (*multiply_panel)(PanelFormat format, const std::byte* panel, std::size_t blocks, const IntegerRows& rows,
                         float* out, std::size_t out_stride, std::size_t outputs);
};

/// Null where the processor has no 8-bit dot products that are worth it (AVX-512 VNNI).
const IntegerKernels* integer_kernels();

}  // namespace engine
