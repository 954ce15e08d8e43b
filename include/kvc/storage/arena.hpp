#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kvc/error.hpp"

namespace kvc::inline KVC_ABI {

/// Where blocks live by default: 64-byte aligned pieces of large chunks, huge pages where the system gives them. Freed
/// pieces are kept by size and reused, so a cache in a steady state asks its upstream for nothing. Thread-safe.
/// Giving a piece back asks for no memory: the freed piece itself holds the link to the next free one of its size.
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
    FreeList& free = free_[rounded(bytes)];
    while (free.count < count) free.push(fresh(rounded(bytes)));
  }

  /// Bytes obtained from upstream, in use or not.
  std::size_t held_bytes() const {
    const std::scoped_lock lock(mutex_);
    return held_;
  }
  /// Those of them that nobody uses.
  std::size_t free_bytes() const {
    const std::scoped_lock lock(mutex_);
    return held_ - used_;
  }

 private:
  static constexpr std::size_t Alignment = 64, SmallestChunk = std::size_t{1} << 16, HugePage = std::size_t{1} << 21;
  static constexpr std::size_t LargestSmall = 256, SmallRegion = 4096;
  struct Chunk {
    std::byte* data;
    std::size_t bytes;
  };
  /// Free pieces of one size; the first bytes of each hold the address of the next.
  struct FreeList {
    struct Link {
      Link* next;
    };
    Link* first = nullptr;
    std::size_t count = 0;

    void push(void* piece) noexcept {
      first = ::new (piece) Link{first};
      ++count;
    }
    void* pop() noexcept {
      void* piece = first;
      first = first->next;
      --count;
      return piece;
    }
  };

  /// Huge pages begin at multiples of their size; a chunk that does not would lose its first and last one.
  static std::size_t alignment_of(std::size_t chunk) { return chunk >= HugePage ? HugePage : Alignment; }
  static std::size_t rounded(std::size_t bytes) {
    const std::size_t wanted = std::max<std::size_t>(bytes, 1) + Alignment - 1;
    if (wanted < bytes) refuse(bytes);
    return wanted / Alignment * Alignment;
  }
  [[noreturn]] static void refuse(std::size_t bytes) {
    fail(ErrorCode::out_of_memory, {"Arena: a piece of ", bytes, " bytes is more than memory can be"});
  }

  std::byte* fresh(std::size_t bytes) { return bytes <= LargestSmall ? carve_small(bytes) : carve(bytes); }

  /// Small pieces, such as a block's header, lie together: each would cost a read of its own from memory if it stood among
  /// the rows of blocks long gone.
  std::byte* carve_small(std::size_t bytes) {
    if (small_remaining_ < bytes) {
      small_next_ = carve(SmallRegion);
      small_remaining_ = SmallRegion;
    }
    std::byte* piece = small_next_;
    small_next_ += bytes;
    small_remaining_ -= bytes;
    return piece;
  }

  std::byte* carve(std::size_t bytes) {
    if (remaining_ < bytes) add_chunk(bytes);
    std::byte* piece = next_;
    next_ += bytes;
    remaining_ -= bytes;
    return piece;
  }

  /// A chunk with room for `bytes`. Chunks double, so that a small cache stays small and a large one lives in huge pages.
  void add_chunk(std::size_t bytes) {
    const std::size_t wanted = std::max({bytes, SmallestChunk, std::min(HugePage * 8, held_)});
    const std::size_t size = wanted >= HugePage ? (wanted + HugePage - 1) / HugePage * HugePage : wanted;
    if (size < bytes) refuse(bytes);
    // Before the chunk is obtained: once it is, nothing may fail, or nobody would know of it.
    if (chunks_.size() == chunks_.capacity()) chunks_.reserve(2 * chunks_.size() + 4);
    auto* data = static_cast<std::byte*>(upstream_->allocate(size, alignment_of(size)));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (size >= HugePage) madvise(data, size, MADV_HUGEPAGE);
#endif
    chunks_.push_back({data, size});
    held_ += size;
    next_ = data;
    remaining_ = size;
  }

  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (alignment > Alignment) return upstream_->allocate(bytes, alignment);
    const std::scoped_lock lock(mutex_);
    const std::size_t size = rounded(bytes);
    FreeList& free = free_[size];  // its entry is made now, so that giving the piece back finds it
    void* piece = free.count > 0 ? free.pop() : fresh(size);
    used_ += size;
    return piece;
  }
  void do_deallocate(void* piece, std::size_t bytes, std::size_t alignment) override {
    if (alignment > Alignment) return upstream_->deallocate(piece, bytes, alignment);
    const std::scoped_lock lock(mutex_);
    const auto free = free_.find(rounded(bytes));
    free->second.push(piece);
    used_ -= free->first;
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }

  std::pmr::memory_resource* upstream_;
  mutable std::mutex mutex_;
  std::vector<Chunk> chunks_;
  std::map<std::size_t, FreeList> free_;
  std::byte *next_ = nullptr, *small_next_ = nullptr;
  std::size_t remaining_ = 0, small_remaining_ = 0, held_ = 0, used_ = 0;
};

}  // namespace kvc
