#include "thread_pool.hpp"

#include <string>
#include <utility>

#include "kvc/error.hpp"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace engine {
namespace {

/// About 50 microseconds: longer than the gaps of a decode step, shorter than anyone notices.
constexpr int SpinRounds = 2000;

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

ThreadPool::ThreadPool(std::size_t threads) {
  if (threads == 0) threads = std::thread::hardware_concurrency();
  try {
    for (std::size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  } catch (const std::exception& error) {
    const std::string reason = error.what();
    const std::size_t started = workers_.size() + 1;
    stop();
    kvc::fail(kvc::ErrorCode::out_of_memory,
              "the system gave " + std::to_string(started) + " of " + std::to_string(threads) + " threads: " + reason);
  }
}

ThreadPool::~ThreadPool() {
  stop();
}

void ThreadPool::stop() {
  stopping_ = true;
  section_number_.fetch_add(1);
  section_number_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::parallel_for(std::size_t count, Body body) {
  const std::unique_lock<std::mutex> section(section_, std::try_to_lock);
  if (count < 2 || workers_.empty() || !section.owns_lock()) {
    for (std::size_t i = 0; i < count; ++i) body(i);
    return;
  }
  body_ = &body;
  count_ = static_cast<std::ptrdiff_t>(count);
  unfinished_.store(count_, std::memory_order_relaxed);
  remaining_.store(count_);
  section_number_.fetch_add(1);
  section_number_.notify_all();
  run_claimed();
  // What is left runs on other threads. If they were descheduled, spinning would only keep them so.
  for (int round = 0; unfinished_.load(std::memory_order_acquire) > 0; ++round) {
    if (round < SpinRounds)
      pause_briefly();
    else
      std::this_thread::yield();
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

/// Claims indices until none is left. A successful claim keeps the section alive (parallel_for waits for it), so body_
/// and count_ are read only after one; a worker that comes late finds nothing to claim, or takes part in the next
/// section.
/// What was done is reported once, at the end: every report moves a cache line between the threads.
void ThreadPool::run_claimed() {
  std::ptrdiff_t done = 0;
  for (std::ptrdiff_t left; (left = remaining_.fetch_sub(1)) > 0; ++done) {
    try {
      (*body_)(static_cast<std::size_t>(count_ - left));
    } catch (...) {
      const std::lock_guard<std::mutex> guard(error_guard_);
      if (!error_) error_ = std::current_exception();
    }
  }
  if (done > 0) unfinished_.fetch_sub(done, std::memory_order_acq_rel);
}

void ThreadPool::sleep_until_work() {
  for (int round = 0; round < SpinRounds; ++round) {
    if (remaining_.load(std::memory_order_relaxed) > 0 || stopping_.load(std::memory_order_relaxed)) return;
    pause_briefly();
  }
  const std::uint32_t seen = section_number_.load();
  if (remaining_.load() > 0 || stopping_.load()) return;
  section_number_.wait(seen);
}

void ThreadPool::work() {
  while (!stopping_) {
    sleep_until_work();
    if (remaining_.load(std::memory_order_relaxed) > 0) run_claimed();
  }
}

}  // namespace engine
