#pragma once
#include <atomic>
#include <cstddef>
#include <thread>

#include "kvc/executor.hpp"
#include "kvc/task_list.hpp"

namespace kvc::inline KVC_ABI {

/// An Executor over threads that an engine already runs, for engines whose threads all execute the same code at the
/// same time (ggml's graph nodes, OpenMP's parallel regions, MPI-like pools). All threads of the team call run(); the
/// first does the work, and whatever it hands to parallel_for, the others help with. No thread is created, so that the
/// cache and the engine never compete for processors.
///
///     team.run(ith, nth, [&] { cache.decode(layer, tokens, out); });   // on every thread of the team
///
/// Between two calls of run() the team must meet at a barrier of its own, as ggml's threads do behind every node. A
/// thread without work spins, as it would at that barrier, and gives its processor away after about 50 microseconds.
///
/// A body that calls parallel_for again gets its bodies done on its own thread; so does a call outside of run(). An
/// exception of a body is thrown again from parallel_for; one that leaves `work` is thrown from the first thread's
/// run().
class TeamExecutor final : public Executor {
 public:
  /// Takes part as thread `ith` of `nth`. Thread 0 does `work` and returns when the others have left too.
  void run(std::size_t ith, std::size_t nth, FunctionRef<void()> work) {
    if (ith != 0) return help();
    const Dismissal dismissal{*this, nth > 0 ? nth - 1 : 0};
    work();
  }

  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    if (count <= 1 || !has_team_.load(std::memory_order_relaxed) || busy_.exchange(true, std::memory_order_acquire)) {
      for (std::size_t i = 0; i < count; ++i) body(i);
      return;
    }
    TaskList tasks(body, count);
    // Sequentially consistent: a helper that then says that it is inside sees the tasks, or is waited for.
    tasks_.store(&tasks);
    version_.store(version_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    tasks.take();
    tasks_.store(nullptr);
    wait_until([&] { return inside_.load() == 0; });
    busy_.store(false, std::memory_order_release);
    tasks.finish();
  }

 private:
  /// Lets the team go when the first thread's work ends, be it by an exception.
  struct Dismissal {
    Dismissal(TeamExecutor& executor, std::size_t others) : team(executor), helpers(others) {
      team.has_team_.store(helpers > 0, std::memory_order_relaxed);
    }
    ~Dismissal() {
      team.has_team_.store(false, std::memory_order_relaxed);
      team.finished_.store(true, std::memory_order_release);
      wait_until([&] { return team.gone_.load(std::memory_order_acquire) == helpers; });
      team.gone_.store(0, std::memory_order_relaxed);
      team.finished_.store(false, std::memory_order_relaxed);
    }
    Dismissal(const Dismissal&) = delete;
    Dismissal& operator=(const Dismissal&) = delete;
    TeamExecutor& team;
    std::size_t helpers;
  };

  void help() {
    for (std::size_t known = 0; !finished_.load(std::memory_order_acquire);) {
      wait_until([&] {
        return version_.load(std::memory_order_relaxed) != known || finished_.load(std::memory_order_relaxed);
      });
      known = version_.load(std::memory_order_relaxed);
      inside_.fetch_add(1);
      if (TaskList* tasks = tasks_.load()) tasks->take();
      inside_.fetch_sub(1);
    }
    gone_.fetch_add(1, std::memory_order_release);
  }

  template <class Happened>
  static void wait_until(Happened happened) {
    for (int round = 0; !happened(); ++round) {
      if (round >= 1500) {
        std::this_thread::yield();
        continue;
      }
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  std::atomic<TaskList*> tasks_{nullptr};  ///< what can be helped with
  std::atomic<std::size_t> version_{0};    ///< grows with every list of tasks
  std::atomic<std::size_t> inside_{0};     ///< helpers that may look at the tasks
  std::atomic<std::size_t> gone_{0};       ///< helpers that have left run()
  std::atomic<bool> finished_{false};      ///< the first thread's work has ended
  std::atomic<bool> has_team_{false};
  std::atomic<bool> busy_{false};  ///< a parallel_for is shared
};

}  // namespace kvc::inline KVC_ABI
