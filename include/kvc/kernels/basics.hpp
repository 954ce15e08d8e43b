#pragma once
#include <cstddef>

#include "kvc/simd/inlining.hpp"

namespace kvc::inline KVC_ABI::kernels {

constexpr std::size_t smaller(std::size_t a, std::size_t b) {
  return a < b ? a : b;
}

inline constexpr std::size_t LineBytes = 64;  // of the caches

/// Fetches the line of p into the second cache level: for what is read a chunk later. The assembly is volatile because the
/// place of a prefetch among the loads matters, and g++ would gather neighbouring ones.
KVC_ALWAYS_INLINE void prefetch(const void* p) {
#if defined(__x86_64__)
  __asm__ volatile("prefetcht1 %0" : : "m"(*static_cast<const unsigned char*>(p)));
#else
  __builtin_prefetch(p, 0, 2);
#endif
}
/// Fetches into the first level what lies a kilobyte behind p: for lines that are being read one after the other.
KVC_ALWAYS_INLINE void prefetch_near(const void* p) {
  __builtin_prefetch(static_cast<const unsigned char*>(p) + 1024, 0, 3);
}

}  // namespace kvc::kernels
