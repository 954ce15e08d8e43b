#pragma once
#include <cstddef>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// A tile is 16 lanes of a block, on every machine: one register of AVX-512, two of AVX2, four of NEON. Blocks are laid out in
/// whole tiles, so memory that kernels read and write is sized in them.
inline constexpr std::size_t TileLanes = 16;

/// count / by, rounded up.
constexpr std::size_t divide_up(std::size_t count, std::size_t by) {
  return (count + by - 1) / by;
}
/// The next multiple of `by` that is at least `count`.
constexpr std::size_t round_up(std::size_t count, std::size_t by) {
  return divide_up(count, by) * by;
}

}  // namespace kvc
