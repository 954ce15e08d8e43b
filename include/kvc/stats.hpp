#pragma once
#include <cstddef>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// Bytes really held and tokens behind them, of one head, one layer or the whole cache. Sums add up field by field.
struct Stats {
  std::size_t seen = 0;     ///< tokens ever appended (of a layer or cache: of its longest head)
  std::size_t slots = 0;    ///< live slots, summed over heads
  std::size_t dead = 0;     ///< rows of evicted slots whose bytes are still held, keys and values counted apart
  std::size_t payload = 0;  ///< bytes of rows in use: dense rows, codes, scales, minima
  std::size_t metadata =
      0;  ///< bytes of positions, row maps, multiplicities, what policies remember, and queries kept for them
  std::size_t slack = 0;        ///< bytes allocated but not in use: open rows of the last blocks, padding
  std::size_t dense_bytes = 0;  ///< bytes of fp16 keys and values of every token seen
  /// Of the whole cache only, and no part of bytes(): working memory, and what the Arena holds in reserve for further
  /// blocks. Forks share both.
  std::size_t workspace = 0, spare = 0;

  std::size_t bytes() const { return payload + metadata + slack; }
  /// Dense bytes over the bytes really held; above 1 is compression.
  double ratio() const { return bytes() ? double(dense_bytes) / double(bytes()) : 1.0; }

  Stats& operator+=(const Stats& other) {
    seen = seen > other.seen ? seen : other.seen;
    slots += other.slots;
    dead += other.dead;
    payload += other.payload;
    metadata += other.metadata;
    slack += other.slack;
    dense_bytes += other.dense_bytes;
    workspace += other.workspace;
    spare += other.spare;
    return *this;
  }
};

}  // namespace kvc
