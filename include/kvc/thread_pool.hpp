#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvc/error.hpp"
#include "kvc/executor.hpp"
#include "kvc/task_list.hpp"

namespace kvc::inline KVC_ABI {

/// An Executor over threads of its own, for engines that have none. The calling thread works too, so ThreadPool(1) has
/// no other thread. Several threads may call parallel_for at once, and a body may call it again: the pool's threads then
/// help every caller, the latest first. A caller works on its own bodies only and never waits for another call to end.
/// An exception of a body is thrown again from parallel_for, after all other bodies of the call are done.
///
/// A thread without work looks out for some for about 50 microseconds before it sleeps: waking it costs more than the
/// attention of a layer over a thousand tokens.
class ThreadPool final : public Executor {
 public:
  /// `threads` counts the caller. Throws Error (out_of_memory) if the system refuses one of them; none is left running.
  explicit ThreadPool(std::size_t threads = std::thread::hardware_concurrency()) {
#if defined(__cpp_exceptions)
    try {
      start(threads);
    } catch (const std::exception& error) {
      const std::string reason = error.what();
      const std::size_t started = workers_.size() + 1;
      stop();
      fail(ErrorCode::out_of_memory, {"ThreadPool: the system gave ", started, " of ", threads, " threads: ", reason});
    }
#else
    start(threads);
#endif
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() override {
    stop();
  }

  std::size_t threads() const {
    return workers_.size() + 1;
  }

  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    Section section(body, count);
    const bool shared = !workers_.empty() && count > 1;
    if (shared) open(section, count - 1);
    section.tasks.take();
    if (shared) close(section);
    section.tasks.finish();
  }

 private:
  /// One call of parallel_for; it lies on the caller's stack. While it is listed, workers may join it.
  struct Section {
    Section(FunctionRef<void(std::size_t)> body, std::size_t count) : tasks(body, count) {}
    TaskList tasks;
    std::atomic<std::size_t> helpers{0};  ///< workers inside; changes under the lock only
    Section* older = nullptr;             ///< the section that was listed before this one
  };

  void start(std::size_t threads) {
    if (threads > 1) workers_.reserve(threads - 1);
    for (std::size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  void stop() {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
      ++version_;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  /// Lists a section and wakes as many workers as it can use, or all.
  void open(Section& section, std::size_t most) {
    {
      const std::scoped_lock lock(mutex_);
      section.older = std::exchange(newest_, &section);
      ++version_;
    }
    const std::size_t helpers = std::min(most, workers_.size());
    if (helpers == workers_.size())
      wake_.notify_all();
    else
      for (std::size_t i = 0; i < helpers; ++i) wake_.notify_one();
  }
  /// Takes a section without open tasks off the list and waits for the workers that are still inside.
  void close(Section& section) {
    std::unique_lock lock(mutex_);
    Section** place = &newest_;
    while (*place != &section) place = &(*place)->older;
    *place = section.older;
    if (section.helpers == 0) return;
    lock.unlock();
    look_out([&] { return section.helpers.load(std::memory_order_acquire) == 0; });
    lock.lock();
    done_.wait(lock, [&] { return section.helpers == 0; });
  }

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

  /// The newest section with a task that nobody has taken; null: none. Called under the lock.
  Section* open_section() const {
    Section* section = newest_;
    while (section && !section->tasks.is_open()) section = section->older;
    return section;
  }
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Section* section = open_section();
      if (!section) {
        const std::uint64_t known = version_;
        lock.unlock();
        look_out([&] { return version_.load(std::memory_order_relaxed) != known; });
        lock.lock();
        wake_.wait(lock, [&] { return stopping_ || (section = open_section()) != nullptr; });
      }
      if (stopping_) return;
      ++section->helpers;
      lock.unlock();
      section->tasks.take();
      lock.lock();
      if (--section->helpers == 0) done_.notify_all();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Section* newest_ = nullptr;              ///< the head of the list of sections
  std::atomic<std::uint64_t> version_{0};  ///< grows with every section; changes under the lock only
  bool stopping_ = false;
};

}  // namespace kvc::inline KVC_ABI
