#pragma once
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>

#include "kvc/executor.hpp"

namespace kvc::inline KVC_ABI {

/// The bodies of one parallel_for, which threads take one after the other: what the executors of this library share. It lies on the
/// caller's stack.
class TaskList {
 public:
  TaskList(FunctionRef<void(std::size_t)> body, std::size_t count) : body_(body), count_(count) {}

  /// Whether there is a body that nobody has taken.
  bool is_open() const { return next_.load(std::memory_order_relaxed) < count_; }
  /// Calls bodies until nobody has one left to take. Of their exceptions the first is kept.
  void take() {
    while (is_open()) {
      const std::size_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= count_) return;
#if defined(__cpp_exceptions)
      try {
        body_(task);
      } catch (...) {
        const std::scoped_lock lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
#else
      body_(task);
#endif
    }
  }
  /// Throws the exception again that was kept, if any. All threads must have left take().
  void finish() {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  FunctionRef<void(std::size_t)> body_;
  std::size_t count_;
  std::atomic<std::size_t> next_{0};  // the first task that nobody has taken
  std::mutex mutex_;                  // guards the next line
  std::exception_ptr failure_;
};

}  // namespace kvc::inline KVC_ABI
