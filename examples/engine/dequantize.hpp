#pragma once
#include <span>

#include "gguf.hpp"

namespace engine {

/// Writes row `row` of `tensor` as f32; `out` has tensor.columns() elements. The arithmetic is that of the GGUF
/// formats' definition: codes times block scale (plus block minimum), in f32.
void dequantize_row(const Tensor& tensor, std::size_t row, std::span<float> out);

/// Writes `blocks` blocks of `type` that begin at `data`.
void dequantize_blocks(TensorType type, const std::byte* data, std::size_t blocks, float* out);

/// Whether all elements of a tensor are finite numbers. Of quantized formats it looks at the scales and minima alone,
/// which are all that can be anything else.
bool all_finite(const Tensor& tensor);

}  // namespace engine
