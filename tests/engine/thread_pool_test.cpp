#include "engine/thread_pool.hpp"

#include <atomic>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "catch_shim.hpp"
#include "support/child_process.hpp"
#include "kvc/error.hpp"
#include "kvc/team_executor.hpp"
#include "kvc/thread_pool.hpp"
#if defined(_OPENMP)
#include "kvc/openmp_executor.hpp"
#endif

// The executors with threads: the engine's own and those that the library has for engines without one.

namespace {

/// A team of threads as an engine has one: here they are made for each section, and its end is their barrier.
class Team {
 public:
  explicit Team(std::size_t threads) : threads_(threads) {}
  void parallel_for(std::size_t count, kvc::FunctionRef<void(std::size_t)> body) {
    if (working_) return executor_.parallel_for(count, body);  // a body that calls it again
    working_ = true;
    std::vector<std::thread> others;
    for (std::size_t i = 1; i < threads_; ++i)
      others.emplace_back([this, i] { executor_.run(i, threads_, [] { FAIL("only the first thread does the work"); }); });
    std::exception_ptr failure;
    try {
      executor_.run(0, threads_, [&] { executor_.parallel_for(count, body); });
    } catch (...) {
      failure = std::current_exception();
    }
    for (std::thread& other : others) other.join();
    working_ = false;
    if (failure) std::rethrow_exception(failure);
  }

 private:
  std::size_t threads_;
  std::atomic<bool> working_{false};
  kvc::TeamExecutor executor_;
};

#if defined(_OPENMP)
/// The processor's threads, whatever number a test asks for.
class OpenMPPool {
 public:
  explicit OpenMPPool(std::size_t) {}
  void parallel_for(std::size_t count, kvc::FunctionRef<void(std::size_t)> body) {
    executor_.parallel_for(count, body);
  }

 private:
  kvc::OpenMPExecutor executor_;
};
#define KVC_THREAD_EXECUTORS engine::ThreadPool, kvc::ThreadPool, Team, OpenMPPool
#else
#define KVC_THREAD_EXECUTORS engine::ThreadPool, kvc::ThreadPool, Team
#endif

/// Three threads have 2000 sections of four indices each done, all at once. Returns how many were done wholly.
template <class Pool>
int sections_of_three_threads() {
  Pool pool(3);
  std::atomic<int> whole{0};
  const auto many_sections = [&] {
    for (int i = 0; i < 2000; ++i) {
      std::atomic<int> done{0};
      pool.parallel_for(4, [&](std::size_t) { ++done; });
      whole += done == 4;
    }
  };
  std::thread second(many_sections), third(many_sections);
  many_sections();
  second.join();
  third.join();
  return whole;
}

}  // namespace

TEMPLATE_TEST_CASE("every index runs exactly once, section after section", "", KVC_THREAD_EXECUTORS) {
  TestType pool(4);
  std::vector<int> visits(100);
  for (int section = 0; section < 3000; ++section)
    pool.parallel_for(1 + static_cast<std::size_t>(section) % visits.size(), [&](std::size_t i) { ++visits[i]; });
  // Section s has 1 + s % 100 indices, so index i runs in 100 - i of every 100 sections.
  for (std::size_t i = 0; i < visits.size(); ++i) CHECK(visits[i] == 30 * static_cast<int>(100 - i));
}

TEMPLATE_TEST_CASE("results of a section are visible when it returns, also after the workers slept", "",
                   KVC_THREAD_EXECUTORS) {
  TestType pool(3);
  std::vector<std::size_t> values(1000);
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pool.parallel_for(values.size(), [&](std::size_t i) { values[i] = i; });
    CHECK(std::accumulate(values.begin(), values.end(), std::size_t{0}) == 499500);
    std::fill(values.begin(), values.end(), std::size_t{0});
  }
}

TEMPLATE_TEST_CASE("an exception of one index arrives at the caller when no body runs any more, and the pool lives on",
                   "", KVC_THREAD_EXECUTORS) {
  TestType pool(2);
  std::atomic<int> running{0}, count{0};
  auto throwing = [&] {
    pool.parallel_for(50, [&](std::size_t i) {
      ++running;
      if (i % 16 == 1) {
        --running;
        throw std::runtime_error("index " + std::to_string(i));
      }
      std::this_thread::yield();
      --running;
    });
  };
  for (int repeat = 0; repeat < 20; ++repeat) {
    REQUIRE_THROWS_AS(throwing(), std::runtime_error);
    REQUIRE(running == 0);
  }
  pool.parallel_for(50, [&](std::size_t) { ++count; });
  CHECK(count == 50);
}

TEMPLATE_TEST_CASE("sections inside sections inside sections do all their work", "", KVC_THREAD_EXECUTORS) {
  TestType pool(3);
  std::atomic<int> count{0};
  for (int repeat = 0; repeat < 50; ++repeat)
    pool.parallel_for(6, [&](std::size_t) {
      pool.parallel_for(5, [&](std::size_t) { pool.parallel_for(4, [&](std::size_t) { ++count; }); });
    });
  CHECK(count == 50 * 6 * 5 * 4);
}

TEMPLATE_TEST_CASE("an exception of an inner section goes through the outer one", "", KVC_THREAD_EXECUTORS) {
  TestType pool(3);
  const auto nested = [&] {
    pool.parallel_for(6, [&](std::size_t outer) {
      pool.parallel_for(6, [&](std::size_t inner) {
        if (outer == 3 && inner == 2) throw std::runtime_error("inside");
      });
    });
  };
  REQUIRE_THROWS_AS(nested(), std::runtime_error);
}

TEMPLATE_TEST_CASE("several threads may ask the same pool for work at once", "", engine::ThreadPool, kvc::ThreadPool) {
  const ChildEnd end = run_in_child([] { return sections_of_three_threads<TestType>() == 6000 ? 0 : 1; });
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
}

#if defined(_OPENMP)
TEST_CASE(
    "several threads may use OpenMP's threads at once") {  // here, since OpenMP does not live on in a child process
  CHECK(sections_of_three_threads<OpenMPPool>() == 6000);
}
#endif

TEMPLATE_TEST_CASE("a pool of one thread works without any other", "", engine::ThreadPool, kvc::ThreadPool) {
  TestType pool(1);
  CHECK(pool.threads() == 1);
  int count = 0;
  pool.parallel_for(7, [&](std::size_t) { ++count; });
  CHECK(count == 7);
}

TEST_CASE("all threads of a team work on a section, and many sections of one piece of work follow each other") {
  kvc::TeamExecutor executor;
  std::atomic<int> together{0}, count{0};
  std::thread other([&] { executor.run(1, 2, [] {}); });
  executor.run(0, 2, [&] {
    executor.parallel_for(2, [&](std::size_t) {  // ends only if two threads run it at once
      ++together;
      while (together < 2) std::this_thread::yield();
    });
    for (int section = 0; section < 5000; ++section) executor.parallel_for(3, [&](std::size_t) { ++count; });
  });
  other.join();
  CHECK(count == 15000);
  executor.parallel_for(4, [&](std::size_t) { ++count; });  // nobody is there to help
  CHECK(count == 15004);
}

TEST_CASE("a team goes apart when its work throws, and works again") {
  kvc::TeamExecutor executor;
  std::thread other([&] { executor.run(1, 2, [] {}); });
  CHECK_THROWS_AS(executor.run(0, 2, [] { throw std::runtime_error("work"); }), std::runtime_error);
  other.join();
  int count = 0;
  std::thread again([&] { executor.run(1, 2, [] {}); });
  executor.run(0, 2, [&] { ++count; });
  again.join();
  CHECK(count == 1);
}

TEST_CASE("the workers help both callers of the library's pool, not only the first") {
  kvc::ThreadPool pool(3);
  // The first caller's bodies all wait until the second's are done, which takes a worker or the second caller.
  std::atomic<bool> release{false};
  std::thread first([&] {
    pool.parallel_for(2, [&](std::size_t) {
      while (!release) std::this_thread::yield();
    });
  });
  std::atomic<int> together{0};
  pool.parallel_for(2, [&](std::size_t) {  // ends only if two threads run it at once
    ++together;
    while (together < 2) std::this_thread::yield();
  });
  release = true;
  first.join();
  CHECK(together == 2);
}

#if defined(KVC_TEST_LIMITS_MEMORY)
TEMPLATE_TEST_CASE("a pool whose threads the system refuses is an error, and leaves no thread behind", "",
                   engine::ThreadPool, kvc::ThreadPool) {
  const ChildEnd end = run_in_child([] {
    leave_memory(std::size_t{64} << 20);  // room for the stacks of a few threads
    try {
      TestType pool(100);
    } catch (const kvc::Error& error) {
      TestType small(2);
      std::atomic<int> count{0};
      small.parallel_for(9, [&](std::size_t) { ++count; });
      return error.code() == kvc::ErrorCode::out_of_memory && count == 9 ? 0 : 1;
    }
    return 2;
  });
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
}
#endif
