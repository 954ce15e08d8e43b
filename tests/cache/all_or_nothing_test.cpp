#include "catch_shim.hpp"

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory_resource>
#include <new>
#include <optional>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/error.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/policies/h2o.hpp"
#include "kvc/policies/kivi.hpp"
#include "support/allocation_counter.hpp"
#include "support/random_tokens.hpp"
#include "support/script.hpp"

// A call either does all it says or throws and leaves the cache as it was, whatever fails in the middle of it: memory, a policy,
// an executor. A script of all calls runs beside a twin for which nothing ever fails. Each call is made again and again, failing
// one place later each time, until nothing is left to fail; after every failure the cache must be as its twin, and when the call
// goes through, so must its answer.

using namespace kvc;
using namespace support;

namespace {

const CacheShape Shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .rotary = Rotary::standard(16)};
/// The same with windows that slide in the script, and a sink logit for each query head of the second layer.
CacheShape windowed(Position first, Position second) {
  CacheShape shape = Shape;
  shape.each_layer = {{.window = first}, {.window = second, .sink_logits = {0, 1, 2, 3}}};
  return shape;
}
constexpr std::size_t Longest = 200;  // tokens of the script and room for its longest call

/// Pipelines of policies that go through every way of changing a cache.
struct Combination {
  const char* text;
  bool compresses = true;
  CacheShape shape = Shape;
};
const Combination Combinations[] = {
    {"full"},
    {"full:bits=4,group=16"},
    {"kivi:bits=4,group=16,residual=16"},
    {"streaming_llm:budget=40,positions=in_cache"},
    {"streaming_llm:budget=40,when=make_room | kivi:group=16,residual=16"},
    {"h2o:budget=40 | kivi:group=16,residual=16"},
    {"h2o:budget=60 | quest:tokens=24,page=8,dense_layers=0"},
    {"snapkv:budget=40,window=8 | kivi:group=16,residual=16", false},
    {"knorm:budget=40 | h2o:budget=30,recent=8"},
    {"external_scores:budget=40,recent=8,when=every_pass"},
    {"razor_attention:heads=none,budget=40 | kivi:group=16,residual=16"},
    {"mini_cache:start=0"},
    {"streaming_llm:budget=40 | mini_cache:start=0 | kivi:group=16,residual=16"},
    {"ada_kv:base=knorm,budget=40 | kivi:group=16,residual=16"},
    {"refit:policy=knorm,budget=40,bits=4,group=16", false},
    {"full", true, windowed(30, 0)},
    {"h2o:budget=20 | kivi:group=16,residual=16", true, windowed(25, 60)},
    {"quest:tokens=16,page=8,dense_layers=0 | kivi:group=16,residual=16", true, windowed(0, 30)},
    {"ada_kv:base=knorm,budget=20", true, windowed(30, 0)},
    {"mini_cache:start=0", true, windowed(30, 30)},
};

/// What goes wrong in one call, as places that are counted through.
class Fault {
 public:
  virtual ~Fault() = default;
  /// Makes the call with its failure after `places` others. Returns whether it failed as it should; throws where it failed in
  /// another way.
  virtual bool fails(std::size_t places, const Step& step, World& world) = 0;
};

/// Runs the script under faults beside a twin without. `faulty` and `executor`: the subject's options, and who runs its batches.
void check_script(const CacheShape& shape, const Stages& stages, const CacheOptions& faulty, Executor& executor,
                  bool compresses, Fault& fault) {
  const LayeredTokens text(shape, Longest, 31);
  World subject(shape, stages, faulty, Longest), twin(shape, stages, {}, Longest);
  SerialExecutor serial;
  const std::vector<Step> steps = whole_script(text, executor, compresses),
                          plain = whole_script(text, serial, compresses);
  std::size_t failures = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    INFO("call " << i << ": " << steps[i].name);
    const std::vector<Picture> before = pictures_of(twin);
    for (std::size_t places = 0; fault.fails(places, steps[i], subject); ++places, ++failures) {
      INFO("failed at place " << places);
      REQUIRE(difference(pictures_of(subject), before) == "");
    }
    plain[i].run(twin);
    REQUIRE((subject.out == twin.out));
    REQUIRE(difference(pictures_of(subject), pictures_of(twin)) == "");
  }
  CHECK(failures > steps.size());
}

/// Memory is refused, once or until the call is over.
class RefusedMemory final : public Fault {
 public:
  explicit RefusedMemory(bool for_good) : for_good_(for_good) {}

  bool fails(std::size_t places, const Step& step, World& world) override {
    const AllocationFault fault(places, for_good_);
    try {
      step.run(world);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::out_of_memory || !AllocationFault::happened()) throw;
      return true;
    } catch (const std::bad_alloc&) {
      if (!for_good_) throw;  // there may be no memory for the Error either
      return true;
    }
    return false;
  }

 private:
  bool for_good_;
};

/// The engine's memory, of which the fault counts every piece.
class CountedMemory final : public std::pmr::memory_resource {
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    std::pmr::new_delete_resource()->deallocate(memory, bytes, alignment);
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }
};

struct Thrown : std::runtime_error {
  Thrown() : std::runtime_error("thrown by the test") {}
};

/// Counts down and throws at zero. It may be shared by policies and executors.
struct Countdown {
  std::size_t left = std::size_t(-1);
  void tick() {
    if (left-- == 0) throw Thrown();
  }
};

/// Something of the test throws, in a place that its countdown reaches.
class ThrowingPlaces final : public Fault {
 public:
  explicit ThrowingPlaces(Countdown& countdown) : countdown_(&countdown) {}

  bool fails(std::size_t places, const Step& step, World& world) override {
    countdown_->left = places;
    bool failed = false;
    try {
      step.run(world);
    } catch (const Thrown&) {
      failed = true;
    }
    countdown_->left = std::size_t(-1);
    return failed;
  }

 private:
  Countdown* countdown_;
};

/// Keeps the newest slots and counts how often each slot was seen, and throws in any of its verbs. While the twin runs, the
/// countdown that both share is far from zero.
struct Moody {
  std::size_t budget = 50;
  Countdown* countdown = nullptr;

  struct Slot {
    int seen = 0;
  };
  void observe(Head<Moody>& head, const Observation&) const {
    for (Slot& slot : head.slots) ++slot.seen;
    tick();
  }
  void evict(Head<Moody>& head, Plan& plan) const {
    tick();
    if (head.event == Event::prompt_chunk || head.size() <= budget) return;
    plan.last(budget);
    tick();
  }
  void tick() const {
    if (countdown) countdown->tick();
  }
};

/// Runs bodies in reverse order; throws before, between or after them.
class MoodyExecutor final : public Executor {
 public:
  explicit MoodyExecutor(Countdown& countdown) : countdown_(&countdown) {}
  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    countdown_->tick();
    for (std::size_t i = count; i-- > 0;) {
      body(i);
      countdown_->tick();
    }
  }

 private:
  Countdown* countdown_;
};

}  // namespace

TEST_CASE("A call that is refused memory leaves the cache as it was, in every place where it asks",
          "[all_or_nothing]") {
  SerialExecutor executor;
  for (const Combination& combination : Combinations)
    for (const bool for_good : {false, true}) {
      INFO(combination.text << (for_good ? ", refused until the call is over" : ", refused once"));
      RefusedMemory fault(for_good);
      check_script(combination.shape, AnyPolicy::parse(combination.text).stages(), {}, executor, combination.compresses,
                   fault);
    }
}

TEST_CASE("A call that the engine's memory resource refuses leaves the cache as it was", "[all_or_nothing]") {
  SerialExecutor executor;
  CountedMemory memory;
  for (const Combination& combination : Combinations) {
    INFO(combination.text);
    RefusedMemory fault(true);
    check_script(combination.shape, AnyPolicy::parse(combination.text).stages(), {.memory = &memory}, executor,
                 combination.compresses, fault);
  }
}

TEST_CASE("A call in which an executor throws leaves the cache as it was", "[all_or_nothing]") {
  for (const Combination& combination : Combinations) {
    INFO(combination.text);
    Countdown countdown;
    MoodyExecutor executor(countdown);
    ThrowingPlaces fault(countdown);
    check_script(combination.shape, AnyPolicy::parse(combination.text).stages(), {.executor = &executor}, executor,
                 combination.compresses, fault);
  }
}

TEST_CASE("A call in which a policy throws leaves the cache as it was", "[all_or_nothing]") {
  SerialExecutor executor;
  Countdown countdown;
  ThrowingPlaces fault(countdown);
  const auto policy = H2O{.budget = 60} | Moody{.countdown = &countdown} | KIVI{.group = 16, .residual = 16};
  check_script(Shape, stages_of(policy), {}, executor, true, fault);
}

namespace {

/// Runs bodies one after the other, and `hook` before body 1 of call 1.
struct HookedExecutor final : Executor {
  std::size_t calls = 0;
  std::function<void()> hook;
  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    const std::size_t call = calls++;
    for (std::size_t i = 0; i < count; ++i) {
      if (call == 1 && i == 1 && hook) std::exchange(hook, nullptr)();
      body(i);
    }
  }
};

/// Drops the oldest slot after every token. Where a test wants it, observe() waits in the middle of a pass.
struct WaitsOnce {
  std::atomic<bool>* waits;
  std::binary_semaphore *arrived, *leaves;
  When when = When::every_pass;
  void observe(Head<WaitsOnce>&, const Observation&) const {
    if (!waits->exchange(false)) return;
    arrived->release();
    leaves->acquire();
  }
  void evict(Head<WaitsOnce>& head, Plan& plan) const {
    if (head.acts && head.event == Event::decode) plan.drop(0);
  }
};

}  // namespace

TEST_CASE("Plans that are carried out in place ask for no memory, even while a fork holds every workspace") {
  const CacheShape shape{.query_heads = 2, .kv_heads = 2, .head_dim = 16};
  const RandomTokens text(shape, 60, 41);
  std::atomic<bool> waits{false};
  std::binary_semaphore arrived{0}, leaves{0};
  HookedExecutor executor;
  KVCache cache(shape, WaitsOnce{&waits, &arrived, &leaves}, {.executor = &executor});
  Outputs out(shape, 1), fork_out(shape, 1);
  cache.prefill(0, text.tokens(0, 40), {});
  cache.reserve(100);
  cache.decode(0, text.tokens(40, 1), out.rows(0, 1));
  auto fork = cache.fork();
  std::thread other;
  std::optional<AllocationFault> fault;
  executor.calls = 0;
  executor.hook = [&] {
    waits = true;
    other = std::thread([&] { fork.decode(0, text.tokens(41, 1), fork_out.rows(0, 1)); });
    arrived.acquire();
    fault.emplace(0, true);
  };
  cache.decode(0, text.tokens(41, 1), out.rows(0, 1));
  CHECK(fault.has_value());
  fault.reset();
  leaves.release();
  other.join();
  for (const HeadId id : {HeadId{0, 0}, HeadId{0, 1}}) {
    CHECK(cache.positions(id).size() == 40);
    CHECK(cache.positions(id) == fork.positions(id));
  }
}
