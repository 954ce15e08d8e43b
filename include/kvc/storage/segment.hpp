#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "kvc/storage/block.hpp"

namespace kvc::inline KVC_ABI {

/// A run of rows in one block: rows [begin, end) of it belong to the head.
struct Segment {
  std::shared_ptr<Block> block;
  std::size_t begin = 0, end = 0;
  std::size_t dead = 0;   ///< rows whose slot was evicted
  bool sealed = false;    ///< encoded by the stream's codec; otherwise dense and writable
  std::size_t first = 0;  ///< number of its first row in the head's row order
  /// Of a block of directions that two layers share: what each row of the block is multiplied by here. Null: 1.
  std::shared_ptr<const std::vector<float>> norms = nullptr;

  std::size_t rows() const { return end - begin; }

  /// Decodes rows.count rows from row `first_row` of the head on.
  void decode(std::size_t first_row, Rows<float> rows) const {
    const std::size_t at = begin + (first_row - first);
    block->codec().decode(block->data(), block->capacity(), at, rows);
    if (!norms) return;
    for (std::size_t row = 0; row < rows.count; ++row)
      for (float& x : rows[row]) x *= (*norms)[at + row];
  }
};

}  // namespace kvc
