#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/abi.hpp"
#include "kvc/assert.hpp"

namespace kvc::inline KVC_ABI {

/// Working memory of one task, handed out from front to back and taken back frame by frame. It grows to the most that was
/// ever needed at once and is kept, so a steady state asks the system for nothing. One task at a time uses a workspace.
///
///   | outer frame: queries, scores … | inner frame: turned queries … | free … |
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// What is taken from a frame is valid until the frame ends. Frames nest: an inner one ends before the outer one, and
  /// while it lives nothing is taken from the outer one.
  class Frame {
   public:
    explicit Frame(Workspace& workspace)
        : workspace_(workspace), outer_(workspace.innermost_), chunk_(workspace.chunk_), used_(workspace.used_) {
      workspace_.innermost_ = this;
    }
    ~Frame() {
      KVC_ASSERT(workspace_.innermost_ == this);
      workspace_.innermost_ = outer_;
      workspace_.chunk_ = chunk_;
      workspace_.used_ = used_;
    }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

    /// `count` elements, uninitialised, beginning on a line of the processor's cache. Throws std::bad_alloc.
    template <class T = float>
    std::span<T> take(std::size_t count) {
      static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= Alignment);
      KVC_ASSERT(workspace_.innermost_ == this);
      T* elements = static_cast<T*>(workspace_.take_bytes(count, sizeof(T)));
      if constexpr (!std::is_trivially_default_constructible_v<T>)
        std::uninitialized_default_construct_n(elements, count);
      return {elements, count};
    }
    /// `count` elements that are all `value`.
    template <class T>
    std::span<T> filled(std::size_t count, T value) {
      const std::span<T> elements = take<T>(count);
      std::fill(elements.begin(), elements.end(), value);
      return elements;
    }
    Workspace& workspace() const { return workspace_; }

   private:
    Workspace& workspace_;
    const Frame* outer_;
    std::size_t chunk_, used_;
  };

  /// Bytes obtained from the system.
  std::size_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::size_t Alignment = 64, SmallestChunk = std::size_t{1} << 16;
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete (memory, std::align_val_t{Alignment}); }
  };
  struct Chunk {
    std::unique_ptr<std::byte, Free> memory;
    std::size_t bytes;
  };

  void* take_bytes(std::size_t count, std::size_t size) {
    if (count > (static_cast<std::size_t>(-1) - Alignment) / size) throw_bad_alloc();
    const std::size_t wanted = (count * size + Alignment - 1) / Alignment * Alignment;
    if (chunk_ == 0 && used_ == 0 && chunks_.size() > 1) join();
    while (chunk_ < chunks_.size() && chunks_[chunk_].bytes - used_ < wanted) {
      ++chunk_;
      used_ = 0;
    }
    if (chunk_ == chunks_.size()) add(std::max({wanted, SmallestChunk, bytes()}));
    std::byte* taken = chunks_[chunk_].memory.get() + used_;
    used_ += wanted;
    return taken;
  }
  /// Nothing is in use: one chunk takes the place of several.
  void join() {
    const std::size_t all = bytes();
    Chunk whole{std::unique_ptr<std::byte, Free>(allocate(all)), all};
    chunks_.clear();
    chunks_.push_back(std::move(whole));  // within the capacity there is
    bytes_.store(all, std::memory_order_relaxed);
  }
  void add(std::size_t bytes) {
    chunks_.reserve(chunks_.size() + 1);
    chunks_.push_back({std::unique_ptr<std::byte, Free>(allocate(bytes)), bytes});
    bytes_.store(this->bytes() + bytes, std::memory_order_relaxed);
  }
  static std::byte* allocate(std::size_t bytes) {
    return static_cast<std::byte*>(::operator new (bytes, std::align_val_t{Alignment}));
  }
  [[noreturn]] static void throw_bad_alloc() {
#if defined(__cpp_exceptions)
    throw std::bad_alloc();
#else
    std::abort();
#endif
  }

  std::vector<Chunk> chunks_;
  std::size_t chunk_ = 0, used_ = 0;  // where the next piece begins
  const Frame* innermost_ = nullptr;
  std::atomic<std::size_t> bytes_{0};
};

/// The workspaces of a cache: a task leases one for as long as it runs. However an executor nests its tasks, two never
/// share one. Thread-safe.
class WorkspacePool {
 public:
  class Lease {
   public:
    explicit Lease(WorkspacePool& pool) : pool_(pool), workspace_(pool.take()) {}
    ~Lease() { pool_.give_back(workspace_); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Workspace& operator*() const { return *workspace_; }

   private:
    WorkspacePool& pool_;
    Workspace* workspace_;
  };

  /// Bytes that all workspaces obtained from the system.
  std::size_t bytes() const {
    const std::scoped_lock lock(mutex_);
    std::size_t bytes = 0;
    for (const auto& workspace : all_) bytes += workspace->bytes();
    return bytes;
  }

 private:
  Workspace* take() {
    const std::scoped_lock lock(mutex_);
    if (free_.empty()) {
      free_.reserve(all_.size() + 1);  // giving back must not ask for memory
      all_.push_back(std::make_unique<Workspace>());
      return all_.back().get();
    }
    Workspace* workspace = free_.back();
    free_.pop_back();
    return workspace;
  }
  void give_back(Workspace* workspace) noexcept {
    const std::scoped_lock lock(mutex_);
    free_.push_back(workspace);
  }

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> all_;
  std::vector<Workspace*> free_;
};

}  // namespace kvc::inline KVC_ABI
