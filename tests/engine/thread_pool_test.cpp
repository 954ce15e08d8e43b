#include "engine/thread_pool.hpp"

#include <atomic>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "catch_shim.hpp"

using engine::ThreadPool;

TEST_CASE("every index runs exactly once, section after section") {
  ThreadPool pool(4);
  std::vector<int> visits(100);
  for (int section = 0; section < 3000; ++section)
    pool.parallel_for(1 + static_cast<std::size_t>(section) % visits.size(), [&](std::size_t i) { ++visits[i]; });
  // Section s has 1 + s % 100 indices, so index i runs in 100 - i of every 100 sections.
  for (std::size_t i = 0; i < visits.size(); ++i) CHECK(visits[i] == 30 * static_cast<int>(100 - i));
}

TEST_CASE("results of a section are visible when it returns, also after the workers slept") {
  ThreadPool pool(3);
  std::vector<std::size_t> values(1000);
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pool.parallel_for(values.size(), [&](std::size_t i) { values[i] = i; });
    CHECK(std::accumulate(values.begin(), values.end(), std::size_t{0}) == 499500);
    std::fill(values.begin(), values.end(), std::size_t{0});
  }
}

TEST_CASE("an exception of one index arrives at the caller and the pool lives on") {
  ThreadPool pool(2);
  auto throwing = [&] {
    pool.parallel_for(50, [](std::size_t i) {
      if (i == 33) throw std::runtime_error("index 33");
    });
  };
  REQUIRE_THROWS_AS(throwing(), std::runtime_error);
  std::atomic<int> count{0};
  pool.parallel_for(50, [&](std::size_t) { ++count; });
  CHECK(count == 50);
}

TEST_CASE("a section inside a section does its work on the calling thread") {
  ThreadPool pool(3);
  std::atomic<int> count{0};
  pool.parallel_for(10, [&](std::size_t) {
    const auto outer = std::this_thread::get_id();
    pool.parallel_for(10, [&](std::size_t) { count += std::this_thread::get_id() == outer; });
  });
  CHECK(count == 100);
}

TEST_CASE("two threads may ask the same pool for work at once") {
  ThreadPool pool(2);
  std::atomic<int> count{0};
  auto many_sections = [&] {
    for (int i = 0; i < 500; ++i) pool.parallel_for(4, [&](std::size_t) { ++count; });
  };
  std::thread other(many_sections);
  many_sections();
  other.join();
  CHECK(count == 4000);
}

TEST_CASE("a pool of one thread works without any other") {
  ThreadPool pool(1);
  CHECK(pool.threads() == 1);
  int count = 0;
  pool.parallel_for(7, [&](std::size_t) { ++count; });
  CHECK(count == 7);
}
