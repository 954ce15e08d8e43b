#pragma once
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

// Replaces the program's operator new: to be included by one file of a program. Tests look at the count between two marks,
// or have one allocation refused.
namespace support {
inline std::atomic<std::size_t> allocation_count{0};
/// That many more allocations succeed, and the one after them throws std::bad_alloc; negative: none is refused.
inline std::atomic<std::ptrdiff_t> allocations_until_refusal{-1};
}  // namespace support

namespace {

[[gnu::noinline]] void* counted(std::size_t bytes, std::size_t alignment) {
  ++support::allocation_count;
  if (support::allocations_until_refusal >= 0 && support::allocations_until_refusal-- == 0) throw std::bad_alloc();
  void* memory = alignment > alignof(std::max_align_t)
                     ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
                     : std::malloc(bytes ? bytes : 1);
  if (!memory) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void release(void* memory) {
  std::free(memory);
}
}  // namespace

void* operator new(std::size_t bytes) {
  return counted(bytes, 1);
}
void* operator new[](std::size_t bytes) {
  return counted(bytes, 1);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return counted(bytes, 1);
}
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return counted(bytes, 1);
}
void operator delete(void* memory) noexcept {
  release(memory);
}
void operator delete[](void* memory) noexcept {
  release(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  release(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  release(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  release(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  release(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  release(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  release(memory);
}
