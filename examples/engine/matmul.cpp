#include "matmul.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include "dequantize.hpp"
#include "integer_kernels.hpp"
#include "kvc/error.hpp"
#include "kvc/half.hpp"
#include "linear_kernels.hpp"

namespace engine {
namespace {

constexpr std::size_t CacheLine = 64;
/// Rows that share one unpacked tile: with 1536 inputs they are 1.5 MB, and unpacking is a few percent of the work.
constexpr std::size_t RowChunk = 256;
/// Panels unpacked at a time: three register-block widths of 16 outputs, 110 KB for 576 inputs.
constexpr std::size_t TilePanels = 3;
/// Pieces that a decode step's product is cut into, enough to balance a handful of threads.
constexpr std::size_t PiecesPerProduct = 16;

PanelFormat format_for(TensorType type) {
  switch (type) {
    case TensorType::q4_0:
    case TensorType::q4_1:
      return PanelFormat::nibble;
    case TensorType::q8_0:
      return PanelFormat::byte;
    case TensorType::f32:
    case TensorType::bf16:
      return PanelFormat::single;
    default:
      return PanelFormat::half;
  }
}

template <class T>
void put(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

std::uint16_t half_or_fail(float value) {
  const std::uint16_t bits = kvc::to_half(value);
  if ((bits & 0x7C00u) == 0x7C00u)
    kvc::fail(kvc::ErrorCode::bad_file, "a weight of " + std::to_string(value) + " is beyond what f16 can hold");
  return bits;
}

/// Column `lane` of a packed block from one block of Q4_0 (scale) or Q4_1 (scale, minimum), 32 inputs.
void pack_nibbles(std::byte* block, std::size_t lane, const std::byte* source, bool has_minimum) {
  std::uint16_t scale, minimum;
  std::memcpy(&scale, source, 2);
  if (has_minimum)
    std::memcpy(&minimum, source + 2, 2);
  else
    minimum = half_or_fail(-8.0f * kvc::from_half(scale));
  put(block + 2 * lane, scale);
  put(block + 32 + 2 * lane, minimum);
  const std::byte* codes = source + (has_minimum ? 4 : 2);
  for (std::size_t group = 0; group < 4; ++group) {
    std::uint32_t word = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      const std::size_t input = group * 8 + i;
      const auto packed = std::to_integer<std::uint32_t>(codes[input % 16]);
      word |= (input < 16 ? packed & 15u : packed >> 4) << (4 * i);
    }
    put(block + 64 + group * 64 + 4 * lane, word);
  }
}

void pack_bytes(std::byte* block, std::size_t lane, const std::byte* source) {
  std::memcpy(block + 2 * lane, source, 2);
  for (std::size_t input = 0; input < BlockInputs; ++input) block[32 + input * 16 + lane] = source[2 + input];
}

void pack_floats(std::byte* block, std::size_t lane, const float* source, PanelFormat format) {
  for (std::size_t input = 0; input < BlockInputs; ++input) {
    if (format == PanelFormat::half)
      put(block + (input * 16 + lane) * 2, half_or_fail(source[input]));
    else
      put(block + (input * 16 + lane) * 4, source[input]);
  }
}

/// Per-thread memory for an unpacked tile; it grows to the largest tile once.
float* tile_memory(std::size_t floats) {
  struct Aligned {
    float* data = nullptr;
    std::size_t size = 0;
    ~Aligned() { ::operator delete (data, std::align_val_t{CacheLine}); }
  };
  thread_local Aligned memory;
  if (memory.size < floats) {
    ::operator delete (memory.data, std::align_val_t{CacheLine});
    memory.data = nullptr;
    memory.size = 0;
    memory.data = static_cast<float*>(::operator new (floats * sizeof(float), std::align_val_t{CacheLine}));
    memory.size = floats;
  }
  return memory.data;
}

void check_shapes(kvc::ConstRows x, std::span<const Product> products) {
  for (const Product& product : products)
    if (x.dim != product.weights->inputs() || product.out.dim != product.weights->outputs() ||
        product.out.count != x.count)
      kvc::fail(kvc::ErrorCode::shape_mismatch, "multiply: rows of " + std::to_string(x.dim) + " into [" +
                                                    std::to_string(product.out.count) + ", " +
                                                    std::to_string(product.out.dim) + "], but the weights are [" +
                                                    std::to_string(product.weights->outputs()) + ", " +
                                                    std::to_string(product.weights->inputs()) + "]");
}

/// All products' pieces of `panels_per_piece` panels, as one range of indices.
class Pieces {
 public:
  Pieces(std::span<const Product> products, std::size_t panels_per_piece)
      : products_(products), panels_per_piece_(panels_per_piece) {
    for (const Product& product : products) count_ += pieces_of(product);
  }

  std::size_t count() const { return count_; }

  struct Piece {
    const Product* product;
    std::size_t first_panel, panels;
  };
  Piece operator[](std::size_t index) const {
    const Product* product = products_.data();
    while (index >= pieces_of(*product)) index -= pieces_of(*product++);
    const std::size_t first = index * panels_per_piece_;
    return {product, first, std::min(panels_per_piece_, product->weights->panels() - first)};
  }

 private:
  std::size_t pieces_of(const Product& product) const {
    return (product.weights->panels() + panels_per_piece_ - 1) / panels_per_piece_;
  }

  std::span<const Product> products_;
  std::size_t panels_per_piece_, count_ = 0;
};

std::size_t panel_count(std::span<const Product> products) {
  std::size_t panels = 0;
  for (const Product& product : products) panels += product.weights->panels();
  return panels;
}

std::size_t outputs_from(const WeightMatrix& weights, std::size_t panel) {
  return weights.outputs() - panel * PanelOutputs;
}

KernelRows kernel_rows(kvc::ConstRows x, const Product& product, std::size_t panel) {
  return {x.data, x.stride, x.count, product.out.data + panel * PanelOutputs, product.out.stride};
}

void multiply_few_rows(kvc::ConstRows x, std::span<const Product> products, kvc::Executor& executor) {
  const LinearKernels& kernels = linear_kernels();
  const std::size_t blocks = x.dim / BlockInputs;
  thread_local std::vector<float> sums_memory;
  sums_memory.resize(x.count * blocks);
  float* sums = sums_memory.data();
  for (std::size_t i = 0; i < x.count * blocks; ++i) {
    const float* inputs = x.data + i / blocks * x.stride + i % blocks * BlockInputs;
    float sum = 0;
    for (std::size_t j = 0; j < BlockInputs; ++j) sum += inputs[j];
    sums[i] = sum;
  }
  const Pieces pieces(products, (panel_count(products) + PiecesPerProduct - 1) / PiecesPerProduct);
  executor.parallel_for(pieces.count(), [&, sums](std::size_t index) {
    const auto [product, first, count] = pieces[index];
    const WeightMatrix& weights = *product->weights;
    for (std::size_t panel = first; panel < first + count; ++panel)
      kernels.multiply_panel(weights.format(), weights.panel(panel), blocks, kernel_rows(x, *product, panel), sums,
                             outputs_from(weights, panel));
  });
}

void multiply_many_rows(kvc::ConstRows x, std::span<const Product> products, kvc::Executor& executor) {
  const LinearKernels& kernels = linear_kernels();
  const Pieces tiles(products, TilePanels);
  const std::size_t chunks = (x.count + RowChunk - 1) / RowChunk;
  executor.parallel_for(tiles.count() * chunks, [&](std::size_t index) {
    const std::size_t first_row = index / tiles.count() * RowChunk;
    const auto [product, first, count] = tiles[index % tiles.count()];
    const WeightMatrix& weights = *product->weights;
    float* tile = tile_memory(TilePanels * PanelOutputs * x.dim);
    for (std::size_t i = 0; i < count; ++i)
      kernels.unpack_panel(weights.format(), weights.panel(first + i), x.dim / BlockInputs,
                           tile + i * PanelOutputs * x.dim);
    const std::size_t rows = std::min(RowChunk, x.count - first_row);
    const Product part{product->weights, product->out.subrows(first_row, rows)};
    kernels.multiply_unpacked(tile, x.dim, kernel_rows(x.subrows(first_row, rows), part, first),
                              std::min(count * PanelOutputs, outputs_from(weights, first)));
  });
}

bool suits_integers(std::span<const Product> products) {
  return std::all_of(products.begin(), products.end(), [](const Product& product) {
    return product.weights->format() == PanelFormat::nibble || product.weights->format() == PanelFormat::byte;
  });
}

/// The activations of a call in 8 bits; memory of the calling thread, kept for the next call.
IntegerRows quantize_rows(kvc::ConstRows x, const IntegerKernels& kernels, kvc::Executor& executor) {
  thread_local std::vector<std::int8_t> codes_memory;
  thread_local std::vector<float> floats_memory;
  const std::size_t blocks = x.dim / BlockInputs;
  codes_memory.resize(std::max(codes_memory.size(), x.count * x.dim));
  floats_memory.resize(std::max(floats_memory.size(), 2 * x.count * blocks));
  std::int8_t* codes = codes_memory.data();
  float* scales = floats_memory.data();
  float* sums = scales + x.count * blocks;
  constexpr std::size_t Grain = 16;
  executor.parallel_for((x.count + Grain - 1) / Grain, [&](std::size_t piece) {
    for (std::size_t row = piece * Grain; row < std::min(x.count, (piece + 1) * Grain); ++row)
      kernels.quantize(x[row].data(), blocks, codes + row * x.dim, scales + row * blocks, sums + row * blocks);
  });
  return {codes, scales, sums, x.count};
}

void multiply_integers(kvc::ConstRows x, std::span<const Product> products, const IntegerKernels& kernels,
                       kvc::Executor& executor) {
  const std::size_t blocks = x.dim / BlockInputs;
  const IntegerRows all_rows = quantize_rows(x, kernels, executor);
  const Pieces pieces(products, (panel_count(products) + PiecesPerProduct - 1) / PiecesPerProduct);
  const std::size_t chunks = (x.count + RowChunk - 1) / RowChunk;
  executor.parallel_for(pieces.count() * chunks, [&](std::size_t index) {
    const std::size_t first_row = index / pieces.count() * RowChunk;
    const auto [product, first, count] = pieces[index % pieces.count()];
    const WeightMatrix& weights = *product->weights;
    const IntegerRows rows = {all_rows.codes + first_row * x.dim, all_rows.scales + first_row * blocks,
                              all_rows.sums + first_row * blocks, std::min(RowChunk, x.count - first_row)};
    for (std::size_t panel = first; panel < first + count; ++panel)
      kernels.multiply_panel(weights.format(), weights.panel(panel), blocks, rows,
                             product->out[first_row].data() + panel * PanelOutputs, product->out.stride,
                             outputs_from(weights, panel));
  });
}

}  // namespace

void WeightMatrix::Free::operator()(std::byte* data) const {
  memory->deallocate(data, bytes, CacheLine);
}

WeightMatrix::WeightMatrix(const Tensor& tensor, std::pmr::memory_resource& memory)
    : outputs_(tensor.rows()),
      inputs_(tensor.columns()),
      format_(format_for(tensor.type)),
      data_(nullptr, {&memory, 0}) {
  if (inputs_ % BlockInputs != 0)
    kvc::fail(kvc::ErrorCode::incompatible, "tensor " + tensor.name + " has rows of " + std::to_string(inputs_) +
                                                " elements, expected a multiple of 32");
  panel_bytes_ = inputs_ / BlockInputs * block_bytes(format_);
  const std::size_t bytes = panels() * panel_bytes_;
  data_ = {static_cast<std::byte*>(memory.allocate(bytes, CacheLine)), Free{&memory, bytes}};
  if (outputs_ % PanelOutputs != 0) std::memset(data_.get() + bytes - panel_bytes_, 0, panel_bytes_);
  for (std::size_t index = 0; index < panels(); ++index) pack_panel(tensor, index);
}

void WeightMatrix::pack_panel(const Tensor& tensor, std::size_t index) {
  const BlockLayout layout = block_layout(tensor.type);
  const std::size_t lanes = std::min(PanelOutputs, outputs_ - index * PanelOutputs);
  std::byte* panel_data = data_.get() + index * panel_bytes_;
  std::vector<float> row(format_ == PanelFormat::half || format_ == PanelFormat::single ? inputs_ : 0);
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    const std::size_t output = index * PanelOutputs + lane;
    const std::byte* source = tensor.data.data() + output * tensor.row_bytes();
    if (!row.empty()) dequantize_row(tensor, output, row);
    for (std::size_t b = 0; b < inputs_ / BlockInputs; ++b) {
      std::byte* block = panel_data + b * block_bytes(format_);
      if (format_ == PanelFormat::nibble)
        pack_nibbles(block, lane, source + b * layout.bytes, tensor.type == TensorType::q4_1);
      else if (format_ == PanelFormat::byte)
        pack_bytes(block, lane, source + b * layout.bytes);
      else
        pack_floats(block, lane, row.data() + b * BlockInputs, format_);
    }
  }
}

void multiply(kvc::ConstRows x, std::span<const Product> products, kvc::Executor& executor, Arithmetic arithmetic) {
  check_shapes(x, products);
  if (x.count == 0 || products.empty()) return;
  const IntegerKernels* integers = arithmetic == Arithmetic::fast ? integer_kernels() : nullptr;
  if (integers && suits_integers(products))
    multiply_integers(x, products, *integers, executor);
  else if (x.count <= 2 * linear_kernels().few_rows)
    multiply_few_rows(x, products, executor);
  else
    multiply_many_rows(x, products, executor);
}

}  // namespace engine
