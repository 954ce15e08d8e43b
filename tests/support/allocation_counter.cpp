#include "support/allocation_counter.hpp"

#include <cstdlib>
#include <limits>
#include <new>

namespace support {

std::atomic<std::size_t> allocation_count{0};
std::atomic<std::ptrdiff_t> allocations_until_refusal{-1};

namespace {

constexpr std::size_t Never = std::numeric_limits<std::size_t>::max();
std::atomic<std::size_t> first_refused{Never}, last_refused{Never};
std::atomic<bool> refused{false};

}  // namespace

AllocationFault::AllocationFault(std::size_t before, bool for_good) {
  refused = false;
  first_refused = allocation_count + before + 1;
  last_refused = for_good ? Never : first_refused.load();
}
AllocationFault::~AllocationFault() {
  first_refused = Never;
}
bool AllocationFault::happened() {
  return refused;
}

void count_allocation() {
  const std::size_t number = ++allocation_count;
  if (allocations_until_refusal >= 0 && allocations_until_refusal-- == 0) throw std::bad_alloc();
  if (number < first_refused || number > last_refused) return;
  refused = true;
  throw std::bad_alloc();
}

namespace {

// Not inlined: GCC would otherwise warn that malloc's memory goes to delete.
[[gnu::noinline]] void* counted(std::size_t bytes, std::size_t alignment) {
  count_allocation();
  void* memory = alignment > alignof(std::max_align_t)
                     ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
                     : std::malloc(bytes ? bytes : 1);
  if (!memory) throw std::bad_alloc();
  return memory;
}
void* counted_or_null(std::size_t bytes) noexcept {
  try {
    return counted(bytes, 1);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
[[gnu::noinline]] void release(void* memory) {
  std::free(memory);
}

}  // namespace
}  // namespace support

void* operator new(std::size_t bytes) {
  return support::counted(bytes, 1);
}
void* operator new[](std::size_t bytes) {
  return support::counted(bytes, 1);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return support::counted(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return support::counted(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return support::counted_or_null(bytes);
}
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return support::counted_or_null(bytes);
}
void operator delete(void* memory) noexcept {
  support::release(memory);
}
void operator delete[](void* memory) noexcept {
  support::release(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  support::release(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  support::release(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  support::release(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  support::release(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  support::release(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  support::release(memory);
}
