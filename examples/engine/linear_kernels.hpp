#pragma once
#include <cstddef>
#include <string_view>

#include "matmul.hpp"

namespace engine {

/// Bytes of one block: 16 outputs x 32 inputs.
constexpr std::size_t PanelOutputs = 16, BlockInputs = 32;
constexpr std::size_t block_bytes(PanelFormat format) {
  switch (format) {
    case PanelFormat::nibble:
      return 64 + 256;
    case PanelFormat::byte:
      return 32 + 512;
    case PanelFormat::half:
      return 1024;
    case PanelFormat::single:
      break;
  }
  return 2048;
}

/// Rows of activations and where their products go.
struct KernelRows {
  const float* x;
  std::size_t x_stride, count;
  float* out;  ///< of the first output of the panel or tile
  std::size_t out_stride;
};

/// The inner loops, one table per instruction set.
struct LinearKernels {
  std::string_view name;
  /// Up to this many rows multiply_panel is faster than unpacking.
  std::size_t few_rows;
  /// Multiplies straight from the packed form. block_sums[row * blocks + b] = sum of the row's inputs in block b.
  /// `outputs`: how many of the 16 exist.
  void (*multiply_panel)(PanelFormat format, const std::byte* panel, std::size_t blocks, const KernelRows& rows,
                         const float* block_sums, std::size_t outputs);
  /// Unpacks a panel to f32 [inputs, 16].
  void (*unpack_panel)(PanelFormat format, const std::byte* panel, std::size_t blocks, float* out);
  /// Multiplies by unpacked panels that follow each other; `outputs` of them all.
  void (*multiply_unpacked)(const float* panels, std::size_t inputs, const KernelRows& rows, std::size_t outputs);
  /// gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
  void (*swiglu)(float* gate, const float* up, std::size_t count);
};

/// The best table that this processor runs.
const LinearKernels& linear_kernels();

/// Every table that this processor runs, best first; for tests.
std::span<const LinearKernels* const> available_linear_kernels();

/// Makes `kernels` the table that multiply() uses; null: the best again. For tests; not while another thread
/// multiplies.
void use_linear_kernels(const LinearKernels* kernels);

}  // namespace engine
