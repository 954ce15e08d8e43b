#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// Where blocks live by default: 64-byte aligned pieces of large chunks, huge pages where the system gives them. Freed
/// pieces are kept by size and reused, so a cache in a steady state asks its upstream for nothing. Thread-safe.
class Arena final : public std::pmr::memory_resource {
 public:
  explicit Arena(std::pmr::memory_resource* upstream = std::pmr::new_delete_resource()) : upstream_(upstream) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() override {
    for (const Chunk& chunk : chunks_) upstream_->deallocate(chunk.data, chunk.bytes, alignment_of(chunk.bytes));
  }

  /// Makes sure that `count` pieces of `bytes` can be had without asking upstream.
  void reserve(std::size_t bytes, std::size_t count) {
    const std::scoped_lock lock(mutex_);
    std::vector<std::byte*>& free = free_[rounded(bytes)];
    if (free.capacity() < count) free.reserve(count);
    while (free.size() < count) free.push_back(fresh(rounded(bytes)));
  }

  /// Bytes obtained from upstream, in use or not.
  std::size_t held_bytes() const {
    const std::scoped_lock lock(mutex_);
    std::size_t bytes = 0;
    for (const Chunk& chunk : chunks_) bytes += chunk.bytes;
    return bytes;
  }

  std::size_t free_bytes() const { return 0; }

 private:
  static constexpr std::size_t Alignment = 64, SmallestChunk = std::size_t{1} << 16, HugePage = std::size_t{1} << 21;
  static constexpr std::size_t LargestSmall = 256, SmallRun = 4096;
  struct Chunk {
    std::byte* data;
    std::size_t bytes;
  };

  /// Huge pages begin at multiples of their size; a chunk that does not would lose its first and last one.
  static std::size_t alignment_of(std::size_t chunk) { return chunk >= HugePage ? HugePage : Alignment; }
  static std::size_t rounded(std::size_t bytes) { return (bytes + Alignment - 1) / Alignment * Alignment; }

  std::byte* fresh(std::size_t bytes) { return bytes <= LargestSmall ? carve_small(bytes) : carve(bytes); }

  /// Small pieces, such as a block's header, lie together: each would cost a read of its own from memory if it stood among the
  /// rows of blocks long gone.
  std::byte* carve_small(std::size_t bytes) {
    if (small_remaining_ < bytes) {
      small_next_ = carve(SmallRun);
      small_remaining_ = SmallRun;
    }
    std::byte* piece = small_next_;
    small_next_ += bytes;
    small_remaining_ -= bytes;
    return piece;
  }

  std::byte* carve(std::size_t bytes) {
    if (remaining_ < bytes) {
      // Chunks double, so that a small cache stays small and a large one lives in huge pages.
      const std::size_t wanted = std::max({bytes, SmallestChunk, std::min(HugePage * 8, total_)});
      const std::size_t size = wanted >= HugePage ? (wanted + HugePage - 1) / HugePage * HugePage : wanted;
      auto* data = static_cast<std::byte*>(upstream_->allocate(size, alignment_of(size)));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
      if (size >= HugePage) madvise(data, size, MADV_HUGEPAGE);
#endif
      chunks_.push_back({data, size});
      total_ += size;
      next_ = data;
      remaining_ = size;
    }
    std::byte* piece = next_;
    next_ += bytes;
    remaining_ -= bytes;
    return piece;
  }

  void* do_allocate(std::size_t bytes, std::size_t) override {
    const std::scoped_lock lock(mutex_);
    if (const auto found = free_.find(rounded(bytes)); found != free_.end() && !found->second.empty()) {
      std::byte* piece = found->second.back();
      found->second.pop_back();
      return piece;
    }
    return fresh(rounded(bytes));
  }
  void do_deallocate(void* piece, std::size_t bytes, std::size_t) override {
    const std::scoped_lock lock(mutex_);
    free_[rounded(bytes)].push_back(static_cast<std::byte*>(piece));
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }

  std::pmr::memory_resource* upstream_;
  mutable std::mutex mutex_;
  std::vector<Chunk> chunks_;
  std::map<std::size_t, std::vector<std::byte*>> free_;
  std::byte *next_ = nullptr, *small_next_ = nullptr;
  std::size_t remaining_ = 0, small_remaining_ = 0, total_ = 0;
};

}  // namespace kvc
