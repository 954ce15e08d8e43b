// What policies do at every generated token must not allocate. This file counts the program's calls of operator new.
#include <kvc/policies/external_scores.hpp>
#include <kvc/policies/h2o.hpp>
#include <kvc/policies/quest.hpp>
#include <kvc/policies/streaming_llm.hpp>

#include <atomic>
#include <cstdlib>
#include <new>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

namespace {
std::atomic<std::size_t> allocations{0};
}

// Not inlined: GCC would otherwise warn that malloc's memory goes to delete.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(bytes ? bytes : 1);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace {

using kvc::Event;
using support::FakeHead;

/// Allocations of observing and evicting in 50 steps of a full head, of which the first may set up memory.
template <class P>
std::size_t allocations_of_steps(P policy) {
  FakeHead<P> head(policy);
  head.pass(Event::prompt_end, 100);
  kvc::Plan plan;
  std::size_t counted = 0;
  for (int step = 0; step < 50; ++step) {
    head.append(1);
    const std::vector<float> sums(2 * head.positions.size(), 0.1f), scores{float(step % 7)};
    kvc::Head<P> view = head.head(Event::decode);
    kvc::Observation seen;
    seen.first_new = head.positions.size() - 1;
    seen.queries_count = 1;
    seen.attention = {sums.data(), 2, head.positions.size()};
    seen.scores = scores;

    const std::size_t before = allocations;
    if constexpr (kvc::Observes<P>) policy.observe(view, seen);
    plan.reset(view);
    if constexpr (kvc::Evicts<P>) {
      policy.evict(view, plan);
    } else {
      head.score(view);
      kvc::keep_best(plan, view.scores, view.budget);
    }
    if (step > 0) counted += allocations - before;
    REQUIRE(plan.kept_count() < head.positions.size());
    head.apply(plan);
  }
  return counted;
}

}  // namespace

TEST_CASE("the count of allocations counts") {
  const std::size_t before = allocations;
  const std::vector<int> one(1);
  CHECK(allocations == before + 1);
  CHECK(one.size() == 1);
}

TEST_CASE("evicting policies allocate nothing while decoding in a full cache") {
  CHECK(allocations_of_steps(kvc::H2O{.budget = 40}) == 0);
  CHECK(allocations_of_steps(kvc::H2O{.budget = 40, .normalize = true}) == 0);
  CHECK(allocations_of_steps(kvc::StreamingLLM{.budget = 40}) == 0);
  CHECK(allocations_of_steps(kvc::ExternalScores{.budget = 40, .when = kvc::When::every_pass}) == 0);
}

TEST_CASE("Quest's selections allocate nothing, its index only where the pages outgrow their memory") {
  FakeHead head(kvc::Quest{.tokens = 32, .page = 4, .dense_layers = 0});
  head.append(100);
  head.state.low.reserve(1000 * 8);
  head.state.high.reserve(1000 * 8);
  kvc::Selection selection;
  std::size_t counted = 0;
  for (int step = 0; step < 50; ++step) {
    head.append(1);
    selection.reset(head.positions.size());
    selection.scratch(1000);
    head.keys_from(0);  // the fake's own copies
    kvc::Head<kvc::Quest> view = head.head(Event::decode);
    const std::size_t before = allocations;
    head.policy.index(view, step == 0 ? 0 : head.positions.size() - 1);
    head.policy.select(view, {head.queries.back().data(), 2, 8}, selection);
    counted += allocations - before;
  }
  CHECK(counted == 0);
}
