#pragma once
#include <kvc/codec/codec.hpp>
#include <kvc/storage/row_store.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace golden {

/// Codes of group-quantized rows with every element's scale and minimum, [rows, dim]: read from the blocks, not computed.
struct SealedRows {
  std::vector<std::int32_t> codes;
  std::vector<float> scales, minima;

  /// Adds the rows of another head.
  void append(const SealedRows& other);
};

/// Slots [0, slots) of a head's keys or values. Throws kvc::Error if one of them is not sealed in the GroupQuant format.
SealedRows sealed_rows(const kvc::RowStore& rows, kvc::Role role, std::size_t slots);

/// The codes of words [outer, codes * bits / 32, inner] that hold 32 / bits codes each, the first in the lowest bits, as
/// [outer, codes, inner].
std::vector<std::int32_t> unpacked(std::span<const std::int32_t> words, std::size_t outer, std::size_t codes,
                                   std::size_t inner, unsigned bits);

/// [outer, rows, columns] as [outer, columns, rows].
template <class T>
std::vector<T> transposed(std::span<const T> in, std::size_t outer, std::size_t rows, std::size_t columns) {
  std::vector<T> out(in.size());
  for (std::size_t o = 0; o < outer; ++o)
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t c = 0; c < columns; ++c) out[(o * columns + c) * rows + r] = in[(o * rows + r) * columns + c];
  return out;
}

}  // namespace golden
