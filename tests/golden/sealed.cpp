#include "golden/sealed.hpp"

#include <kvc/codec/group_quant.hpp>
#include <kvc/half.hpp>

#include <cstring>

namespace golden {
namespace {

float metadata_at(const std::byte* numbers, std::size_t index, kvc::Scalar type) {
  if (type == kvc::Scalar::f32) {
    float value;
    std::memcpy(&value, numbers + index * sizeof(float), sizeof(float));
    return value;
  }
  std::uint16_t half;
  std::memcpy(&half, numbers + index * sizeof(half), sizeof(half));
  return kvc::from_half(half);
}

/// Adds row `row` of a block.
void read_row(const kvc::GroupQuantCodec& codec, const kvc::Block& block, kvc::Role role, std::size_t row,
              SealedRows& out) {
  const kvc::kernels::PackedLayout layout = codec.layout(block.capacity());
  for (std::size_t channel = 0; channel < codec.dim(); ++channel) {
    const bool key = role == kvc::Role::key;
    const std::size_t p = key ? channel : row, lane = key ? row : channel;
    const auto place = layout.code_place(p, lane);
    out.codes.push_back(static_cast<std::int32_t>(
        layout.code_at(static_cast<const std::uint32_t*>(static_cast<const void*>(block.data())), place)));
    const std::size_t group = layout.metadata_index(p, lane);
    out.scales.push_back(metadata_at(block.data() + layout.scale_offset(), group, layout.metadata));
    out.minima.push_back(metadata_at(block.data() + layout.minimum_offset(), group, layout.metadata));
  }
}

}  // namespace

void SealedRows::append(const SealedRows& other) {
  codes.insert(codes.end(), other.codes.begin(), other.codes.end());
  scales.insert(scales.end(), other.scales.begin(), other.scales.end());
  minima.insert(minima.end(), other.minima.begin(), other.minima.end());
}

SealedRows sealed_rows(const kvc::RowStore& rows, kvc::Role role, std::size_t slots) {
  SealedRows out;
  for (std::size_t slot = 0; slot < slots; ++slot) {
    const auto place = static_cast<std::size_t>(rows.map()[slot]);
    const kvc::GroupQuantCodec* codec = nullptr;
    for (const kvc::Segment& segment : rows.segments()) {
      if (place < segment.first || place >= segment.first + segment.rows()) continue;
      codec = dynamic_cast<const kvc::GroupQuantCodec*>(&segment.block->codec());
      if (codec) read_row(*codec, *segment.block, role, segment.begin + place - segment.first, out);
    }
    if (!codec) kvc::fail(kvc::ErrorCode::incompatible, "slot " + std::to_string(slot) + " is not sealed in groups");
  }
  return out;
}

std::vector<std::int32_t> unpacked(std::span<const std::int32_t> words, std::size_t outer, std::size_t codes,
                                   std::size_t inner, unsigned bits) {
  const std::size_t per_word = 32 / bits, rows = codes / per_word;
  if (codes % per_word != 0 || words.size() != outer * rows * inner)
    kvc::fail(kvc::ErrorCode::shape_mismatch, std::to_string(words.size()) + " words do not hold " +
                                                  std::to_string(outer * codes * inner) + " codes of " +
                                                  std::to_string(bits) + " bits");
  std::vector<std::int32_t> out(outer * codes * inner);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t code = i / inner % codes;
    const auto word =
        static_cast<std::uint32_t>(words[(i / inner / codes * rows + code / per_word) * inner + i % inner]);
    out[i] = static_cast<std::int32_t>(word >> code % per_word * bits & ((1u << bits) - 1));
  }
  return out;
}

}  // namespace golden
