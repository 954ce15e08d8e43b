#pragma once
#include <cstddef>
#include <span>
#include <vector>

namespace kvc::detail {

/// Working memory of the calling thread, one buffer per Purpose. It only grows, so a steady state allocates nothing; a
/// second call with the same Purpose on the same thread returns the same memory.
template <class Purpose, class T = float>
std::span<T> scratch(std::size_t count) {
  thread_local std::vector<T> memory;
  if (memory.size() < count) memory.resize(count + count / 4);
  return {memory.data(), count};
}

}  // namespace kvc::detail
