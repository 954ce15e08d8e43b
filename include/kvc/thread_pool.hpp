#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "kvc/executor.hpp"

namespace kvc::inline KVC_ABI {

/// An Executor over threads of its own, for engines that have none. The calling thread works too, so ThreadPool(1) is
/// serial. An exception of a body is thrown again from parallel_for, after all others are done. One parallel_for at a time.
/// A thread without work looks out for some for about 50 microseconds before it sleeps: waking it costs more than the
/// attention of a layer over a thousand tokens.
class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(std::size_t threads = std::thread::hardware_concurrency()) {
    for (std::size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() override {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  std::size_t threads() const { return workers_.size() + 1; }

  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    if (workers_.empty() || count <= 1) {
      for (std::size_t i = 0; i < count; ++i) body(i);
      return;
    }
    {
      const std::scoped_lock lock(mutex_);
      body_ = &body;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      active_ = workers_.size();
      ++generation_;
    }
    wake_.notify_all();
    take_tasks();
    look_out([this] { return active_.load(std::memory_order_acquire) == 0; });
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return active_ == 0; });
    body_ = nullptr;
    if (const std::exception_ptr failure = std::exchange(failure_, nullptr)) std::rethrow_exception(failure);
  }

 private:
  template <class Happened>
  static void look_out(Happened happened) {
    for (int round = 0; round < 1500 && !happened(); ++round) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#else
      std::this_thread::yield();
#endif
    }
  }
  void take_tasks() {
    for (;;) {
      const std::size_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= count_) return;
#if defined(__cpp_exceptions)
      try {
        (*body_)(task);
      } catch (...) {
        const std::scoped_lock lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
#else
      (*body_)(task);
#endif
    }
  }
  void work() {
    std::uint64_t known = 0;
    for (;;) {
      look_out([&] { return generation_.load(std::memory_order_acquire) != known; });
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || generation_ != known; });
        if (stopping_) return;
        known = generation_;
      }
      take_tasks();
      const std::scoped_lock lock(mutex_);
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  FunctionRef<void(std::size_t)>* body_ = nullptr;
  std::size_t count_ = 0;
  // The last two change under the lock only; the lookouts peep at them.
  std::atomic<std::size_t> next_{0}, active_{0};
  std::atomic<std::uint64_t> generation_{0};
  std::exception_ptr failure_;
  bool stopping_ = false;
};

}  // namespace kvc
