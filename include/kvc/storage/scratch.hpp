#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI::detail {

/// Working memory of the calling thread, one buffer per Purpose. It only grows, so a steady state allocates nothing; a
/// second call with the same Purpose on the same thread returns the same memory.
template <class Purpose, class T = float>
std::span<T> scratch(std::size_t count) {
  thread_local std::vector<T> memory;
  if constexpr (!std::is_same_v<T, float>) {
    if (memory.size() < count) memory.resize(count + count / 4);
    return {memory.data(), count};
  } else {  // from a line of the cache on: vectors that straddle two cost double
    constexpr std::size_t Line = 64 / sizeof(float);
    if (memory.size() < count + Line) memory.resize(count + count / 4 + Line);
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory.data()) / sizeof(float) % Line;
    return {memory.data() + (Line - past) % Line, count};
  }
}

}  // namespace kvc::detail
