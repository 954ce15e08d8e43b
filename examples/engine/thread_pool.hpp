#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "kvc/executor.hpp"

namespace engine {

/// The engine's worker threads, and the executor that it hands to kvc.
///
/// A decode step has about 150 parallel sections of some 20 microseconds, so workers spin for a while before they
/// sleep. The calling thread works too. One section runs at a time: a nested or concurrent parallel_for does its work
/// on the calling thread alone.
class ThreadPool final : public kvc::Executor {
 public:
  /// `threads` counts the caller; 0 means one per processor. Throws kvc::Error (out_of_memory) if the system refuses one
  /// of them; none is left running.
  explicit ThreadPool(std::size_t threads = 0);
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t threads() const { return workers_.size() + 1; }

  /// Calls body(0) … body(count - 1) and returns when all are done. The first exception of a body is rethrown here.
  void parallel_for(std::size_t count, kvc::FunctionRef<void(std::size_t)> body) override;

 private:
  using Body = kvc::FunctionRef<void(std::size_t)>;

  void stop();
  void work();
  void run_claimed();
  void sleep_until_work();

  std::mutex section_;  ///< held by whoever runs a section
  const Body* body_ = nullptr;
  std::ptrdiff_t count_ = 0;
  std::atomic<std::ptrdiff_t> remaining_{0};  ///< indices that nobody has claimed; zero or less: nothing to do
  std::atomic<std::ptrdiff_t> unfinished_{0};
  std::atomic<std::uint32_t> section_number_{0};  ///< what sleeping workers wait for
  std::atomic<bool> stopping_{false};
  std::mutex error_guard_;
  std::exception_ptr error_;
  std::vector<std::thread> workers_;
};

}  // namespace engine
