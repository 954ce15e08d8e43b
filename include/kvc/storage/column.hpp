#pragma once
#include <cstddef>
#include <new>
#include <vector>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// Memory that begins on a line of the processor's cache.
template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t Line{64};

  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}  // NOLINT: implicit, as allocators are

  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), Line)); }
  void deallocate(T* memory, std::size_t) noexcept { ::operator delete(memory, Line); }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
};

/// What one policy keeps per slot of a head, one Slot after the other, each aligned as its type wants: at most to 64 bytes.
using Column = std::vector<std::byte, LineAllocator<std::byte>>;

}  // namespace kvc
