#pragma once
#include <cstddef>
#include <memory>
#include <memory_resource>
#include <span>
#include <vector>

#include "gguf.hpp"
#include "kvc/executor.hpp"
#include "kvc/views.hpp"

namespace engine {

/// How a packed weight matrix stores its elements; see linear_kernels-inl.hpp for the layouts.
enum class PanelFormat {
  nibble,  ///< Q4_0, Q4_1: 4-bit code, f16 scale and minimum per 32 inputs
  byte,    ///< Q8_0: 8-bit code, f16 scale per 32 inputs
  half,    ///< F16 as it is; Q5_*, K-quants rounded to f16, 2^-12 relative, far below their quantization step
  single,  ///< F32, BF16
};

/// The weights of a linear layer, [outputs, inputs], re-packed once at load in panels of 16 outputs.
class WeightMatrix {
 public:
  /// `memory` must outlive the matrix. Throws kvc::Error: incompatible unless the inputs are a multiple of 32,
  /// bad_file for weights that the packed form cannot hold (beyond the largest f16).
  explicit WeightMatrix(const Tensor& tensor, std::pmr::memory_resource& memory = *std::pmr::get_default_resource());

  std::size_t outputs() const { return outputs_; }
  std::size_t inputs() const { return inputs_; }
  std::size_t panels() const { return (outputs_ + 15) / 16; }
  PanelFormat format() const { return format_; }
  std::size_t panel_bytes() const { return panel_bytes_; }
  const std::byte* panel(std::size_t index) const { return data_.get() + index * panel_bytes_; }

 private:
  struct Free {
    std::pmr::memory_resource* memory;
    std::size_t bytes;
    void operator()(std::byte* data) const;
  };
  void pack_panel(const Tensor& tensor, std::size_t index);

  std::size_t outputs_, inputs_, panel_bytes_;
  PanelFormat format_;
  std::unique_ptr<std::byte, Free> data_;
};

/// One linear layer applied to rows that several layers share.
struct Product {
  const WeightMatrix* weights;
  kvc::Rows<float> out;  ///< [tokens, weights->outputs()]
};

/// What the products of a linear layer are computed in.
enum class Arithmetic {
  f32,   ///< exact up to f32 rounding
  fast,  ///< Q4_0, Q4_1 and Q8_0 weights by activations rounded to 8 bits per 32, as llama.cpp does, where the
         ///< processor has AVX-512 VNNI; f32 for all else
};

/// out = x * weights^T for every product. `x` is [tokens, inputs]; weights stay quantized in memory and are read once
/// per call. All products are one parallel section.
void multiply(kvc::ConstRows x, std::span<const Product> products, kvc::Executor& executor,
              Arithmetic arithmetic = Arithmetic::f32);

inline void multiply(kvc::ConstRows x, const WeightMatrix& weights, kvc::Rows<float> out, kvc::Executor& executor,
                     Arithmetic arithmetic = Arithmetic::f32) {
  const Product product{&weights, out};
  multiply(x, {&product, 1}, executor, arithmetic);
}

}  // namespace engine
