#include "dequantize.hpp"

#include <bit>
#include <cstring>
#include <vector>

#include "kvc/error.hpp"
#include "kvc/half.hpp"

namespace engine {
namespace {

std::uint8_t byte_at(const std::byte* data, std::size_t index) {
  return std::to_integer<std::uint8_t>(data[index]);
}

float half_at(const std::byte* data, std::size_t offset) {
  std::uint16_t bits;
  std::memcpy(&bits, data + offset, sizeof bits);
  return kvc::from_half(bits);
}

std::uint32_t word_at(const std::byte* data, std::size_t offset) {
  std::uint32_t bits;
  std::memcpy(&bits, data + offset, sizeof bits);
  return bits;
}

// Blocks of 32: low nibbles are elements 0..15, high nibbles 16..31; a fifth bit, if any, is bit i of a 32-bit word.

void q4_0_block(const std::byte* block, float* out) {
  const float scale = half_at(block, 0);
  for (std::size_t i = 0; i < 16; ++i) {
    const int code = byte_at(block, 2 + i);
    out[i] = static_cast<float>((code & 15) - 8) * scale;
    out[i + 16] = static_cast<float>((code >> 4) - 8) * scale;
  }
}

void q4_1_block(const std::byte* block, float* out) {
  const float scale = half_at(block, 0), minimum = half_at(block, 2);
  for (std::size_t i = 0; i < 16; ++i) {
    const int code = byte_at(block, 4 + i);
    out[i] = static_cast<float>(code & 15) * scale + minimum;
    out[i + 16] = static_cast<float>(code >> 4) * scale + minimum;
  }
}

/// Five-bit code of element i: nibbles at `low`, fifth bits in `high`.
int five_bits(const std::byte* low, std::uint32_t high, std::size_t i) {
  const int nibble = i < 16 ? byte_at(low, i) & 15 : byte_at(low, i - 16) >> 4;
  return nibble | static_cast<int>(((high >> i) & 1u) << 4);
}

void q5_0_block(const std::byte* block, float* out) {
  const float scale = half_at(block, 0);
  const std::uint32_t high = word_at(block, 2);
  for (std::size_t i = 0; i < 32; ++i) out[i] = static_cast<float>(five_bits(block + 6, high, i) - 16) * scale;
}

void q5_1_block(const std::byte* block, float* out) {
  const float scale = half_at(block, 0), minimum = half_at(block, 2);
  const std::uint32_t high = word_at(block, 4);
  for (std::size_t i = 0; i < 32; ++i) out[i] = static_cast<float>(five_bits(block + 8, high, i)) * scale + minimum;
}

void q8_0_block(const std::byte* block, float* out) {
  const float scale = half_at(block, 0);
  for (std::size_t i = 0; i < 32; ++i)
    out[i] = static_cast<float>(static_cast<std::int8_t>(byte_at(block, 2 + i))) * scale;
}

// Super-blocks of 256 ("K-quants"): small integer scales per 16 or 32 elements, times one or two f16 scales.

/// 16 bytes of 4-bit scale (low) and minimum (high), 64 of 2-bit codes, then both f16 scales.
void q2_k_block(const std::byte* block, float* out) {
  const float scale = half_at(block, 80), minimum = half_at(block, 82);
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t half = i / 128, shift = (i % 128) / 32 * 2;
    const int code = (byte_at(block, 16 + half * 32 + i % 32) >> shift) & 3;
    const int sub = byte_at(block, i / 16);
    out[i] = scale * static_cast<float>(sub & 15) * static_cast<float>(code) - minimum * static_cast<float>(sub >> 4);
  }
}

/// 32 bytes of third bits (clear means minus 4), 64 of 2-bit codes, 12 of 6-bit scales, then the f16 scale.
void q3_k_block(const std::byte* block, float* out) {
  const std::byte* scales = block + 96;
  const float scale = half_at(block, 108);
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t half = i / 128, quarter = i / 32, sub = i / 16;
    int code = (byte_at(block, 32 + half * 32 + i % 32) >> ((i % 128) / 32 * 2)) & 3;
    if (((byte_at(block, i % 32) >> quarter) & 1) == 0) code -= 4;
    const int low = sub < 8 ? byte_at(scales, sub) & 15 : byte_at(scales, sub - 8) >> 4;
    const int high = (byte_at(scales, 8 + sub % 4) >> (sub / 4 * 2)) & 3;
    out[i] = scale * static_cast<float>((low | high << 4) - 32) * static_cast<float>(code);
  }
}

/// The 12 bytes of Q4_K and Q5_K hold eight 6-bit scales and eight 6-bit minima; the last four of each are split.
struct SixBitPair {
  int scale, minimum;
};
SixBitPair six_bits(const std::byte* packed, std::size_t sub) {
  if (sub < 4) return {byte_at(packed, sub) & 63, byte_at(packed, sub + 4) & 63};
  return {(byte_at(packed, sub + 4) & 15) | (byte_at(packed, sub - 4) >> 6) << 4,
          (byte_at(packed, sub + 4) >> 4) | (byte_at(packed, sub) >> 6) << 4};
}

/// Both f16 scales, 12 bytes of six-bit pairs, (Q5_K: 32 bytes of fifth bits,) 128 bytes of nibbles: 32 bytes hold
/// 32 elements in their low and the next 32 in their high nibbles.
void q4_or_q5_k_block(const std::byte* block, float* out, bool five) {
  const float scale = half_at(block, 0), minimum = half_at(block, 2);
  const std::byte* low = block + (five ? 48 : 16);
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t sub = i / 32;
    const int packed = byte_at(low, i / 64 * 32 + i % 32);
    int code = sub % 2 == 0 ? packed & 15 : packed >> 4;
    if (five) code |= ((byte_at(block, 16 + i % 32) >> sub) & 1) << 4;
    const SixBitPair pair = six_bits(block + 4, sub);
    out[i] =
        scale * static_cast<float>(pair.scale) * static_cast<float>(code) - minimum * static_cast<float>(pair.minimum);
  }
}

/// 128 bytes of nibbles, 64 of two upper bits, 16 signed scales, then the f16 scale.
void q6_k_block(const std::byte* block, float* out) {
  const float scale = half_at(block, 208);
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t half = i / 128, within = i % 128, quarter = within / 32;
    const int nibbles = byte_at(block, half * 64 + within % 64);
    const int low = within < 64 ? nibbles & 15 : nibbles >> 4;
    const int high = (byte_at(block, 128 + half * 32 + i % 32) >> (quarter * 2)) & 3;
    const int sub = static_cast<std::int8_t>(byte_at(block, 192 + i / 16));
    out[i] = scale * static_cast<float>(sub) * static_cast<float>((low | high << 4) - 32);
  }
}

void dequantize_block(TensorType type, const std::byte* block, float* out) {
  switch (type) {
    case TensorType::f32:
      std::memcpy(out, block, sizeof(float));
      return;
    case TensorType::f16:
      *out = half_at(block, 0);
      return;
    case TensorType::bf16: {
      std::uint16_t bits;
      std::memcpy(&bits, block, sizeof bits);
      *out = kvc::from_bfloat(bits);
      return;
    }
    case TensorType::q4_0:
      q4_0_block(block, out);
      return;
    case TensorType::q4_1:
      q4_1_block(block, out);
      return;
    case TensorType::q5_0:
      q5_0_block(block, out);
      return;
    case TensorType::q5_1:
      q5_1_block(block, out);
      return;
    case TensorType::q8_0:
      q8_0_block(block, out);
      return;
    case TensorType::q2_k:
      q2_k_block(block, out);
      return;
    case TensorType::q3_k:
      q3_k_block(block, out);
      return;
    case TensorType::q4_k:
      q4_or_q5_k_block(block, out, false);
      return;
    case TensorType::q5_k:
      q4_or_q5_k_block(block, out, true);
      return;
    case TensorType::q6_k:
      q6_k_block(block, out);
      return;
  }
}

/// Where the f16 numbers of a format lie in its block; of unquantized formats there are none.
std::vector<std::size_t> half_offsets(TensorType type) {
  switch (type) {
    case TensorType::f32:
    case TensorType::bf16:
      return {};
    case TensorType::f16:
    case TensorType::q4_0:
    case TensorType::q5_0:
    case TensorType::q8_0:
      return {0};
    case TensorType::q4_1:
    case TensorType::q5_1:
    case TensorType::q4_k:
    case TensorType::q5_k:
      return {0, 2};
    case TensorType::q2_k:
      return {80, 82};
    case TensorType::q3_k:
      return {108};
    case TensorType::q6_k:
      return {208};
  }
  return {};
}

/// Whether `Word`s, `step` bytes apart from `data` on, all lack the exponent that infinities and NaNs have.
template <class Word>
bool exponents_finite(const std::byte* data, std::size_t count, std::size_t step, Word exponent) {
  bool finite = true;
  for (std::size_t i = 0; i < count; ++i) {
    Word bits;
    std::memcpy(&bits, data + i * step, sizeof bits);
    finite &= (bits & exponent) != exponent;
  }
  return finite;
}

}  // namespace

bool all_finite(const Tensor& tensor) {
  const BlockLayout layout = block_layout(tensor.type);
  const std::size_t blocks = tensor.data.size() / layout.bytes;
  const std::byte* data = tensor.data.data();
  if (tensor.type == TensorType::f32) return exponents_finite<std::uint32_t>(data, blocks, layout.bytes, 0x7F800000u);
  if (tensor.type == TensorType::bf16) return exponents_finite<std::uint16_t>(data, blocks, layout.bytes, 0x7F80u);
  for (const std::size_t offset : half_offsets(tensor.type))
    if (!exponents_finite<std::uint16_t>(data + offset, blocks, layout.bytes, 0x7C00u)) return false;
  return true;
}

void dequantize_blocks(TensorType type, const std::byte* data, std::size_t blocks, float* out) {
  const BlockLayout layout = block_layout(type);
  for (std::size_t i = 0; i < blocks; ++i) dequantize_block(type, data + i * layout.bytes, out + i * layout.elements);
}

void dequantize_row(const Tensor& tensor, std::size_t row, std::span<float> out) {
  if (row >= tensor.rows() || out.size() != tensor.columns())
    kvc::fail(kvc::ErrorCode::shape_mismatch, "row " + std::to_string(row) + " of tensor " + tensor.name + " into " +
                                                  std::to_string(out.size()) + " floats: the tensor has " +
                                                  std::to_string(tensor.rows()) + " rows of " +
                                                  std::to_string(tensor.columns()));
  const std::size_t blocks = tensor.columns() / block_layout(tensor.type).elements;
  dequantize_blocks(tensor.type, tensor.data.data() + row * tensor.row_bytes(), blocks, out.data());
}

}  // namespace engine
