#include "catch_shim.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/random_tokens.hpp"

// Executors may run bodies in any order, and while a caller waits for them run work of somebody else on its thread, as pools
// that steal do: other sequences, of the same shape, in the middle of a call. Nothing of that may be seen in a bit.
// Executors that throw are in all_or_nothing_test.cpp.

using namespace kvc;
using namespace support;

namespace {

const CacheShape Shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .rotary = Rotary::standard(16)};
constexpr std::size_t Prompt = 90, Steps = 30;
constexpr const char* Policies[] = {
    "full:bits=4,group=16",
    "h2o:budget=40,positions=in_cache | kivi:group=16,residual=16",
    "snapkv:budget=40,window=8 | kivi:group=16,residual=16",
    "quest:tokens=24,page=8,dense_layers=0",
    "streaming_llm:budget=40 | mini_cache:start=0 | kivi:group=16,residual=16",
    "ada_kv:base=h2o,budget=40",
    "compact:budget=40,replay=false",
    "compact:budget=40,replay=false,batch=12",
    "refit:policy=knorm,budget=40,bits=4,group=16",
    "attention_matching:budget=40",
    "d2o:budget=40",
    "cam:base=h2o,budget=40 | kivi:group=16,residual=16",
};

/// Runs bodies in an order drawn anew for every call.
class Shuffling final : public Executor {
 public:
  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::shuffle(order.begin(), order.end(), random_);
    for (const std::size_t i : order) body(i);
  }

 private:
  std::mt19937 random_{7};
};

/// Before, between and after the bodies of a call does a piece of other work, which may use this executor too.
class Stealing final : public Executor {
 public:
  std::function<void()> other_work = {};

  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    steal();
    for (std::size_t i = count; i-- > 0;) {
      body(i);
      steal();
    }
  }

 private:
  void steal() {
    if (stealing_ || !other_work) return;
    stealing_ = true;
    other_work();
    stealing_ = false;
  }
  bool stealing_ = false;
};

/// A sequence that is fed one call after another, whenever it is asked to go on.
class Feeding {
 public:
  Feeding(const char* policy, unsigned seed, Executor* executor)
      : cache_(Shape, AnyPolicy::parse(policy), {.executor = executor}), text_(Shape, Prompt + Steps, seed) {}

  bool ended() const { return at_ == Prompt + Steps; }
  void go_on() {
    if (ended() || busy_) return;
    busy_ = true;                             // one call at a time, as the cache's user promises
    if (at_ == Prompt + 10 && layer_ == 0) {  // context shift
      cache_.remove(20, 50);
      cache_.shift(50, static_cast<Position>(at_), -30);
    }
    const bool in_prompt = at_ < Prompt;
    const std::size_t count = in_prompt ? std::min<std::size_t>(37, Prompt - at_) : 1;
    Outputs out(Shape, count);
    const Tokens tokens = text_.tokens(layer_, at_, count);
    if (in_prompt)
      cache_.prefill(layer_, tokens, out.rows(0, count), at_ + count == Prompt);
    else
      cache_.decode(layer_, tokens, out.rows(0, count));
    answers_.insert(answers_.end(), out.values().begin(), out.values().end());
    layer_ = (layer_ + 1) % Shape.layers;
    if (layer_ == 0) at_ += count;
    busy_ = false;
  }
  const std::vector<float>& answers() {
    while (!ended()) go_on();
    return answers_;
  }

 private:
  KVCache<AnyPolicy> cache_;
  LayeredTokens text_;
  std::size_t layer_ = 0, at_ = 0;
  bool busy_ = false;
  std::vector<float> answers_;
};

std::vector<float> answers_alone(const char* policy, unsigned seed) {
  return Feeding(policy, seed, nullptr).answers();
}

}  // namespace

TEST_CASE("An executor that runs bodies in any order gives the same bits") {
  for (const char* policy : Policies) {
    INFO(policy);
    Shuffling shuffling;
    Feeding sequence(policy, 1, &shuffling);
    CHECK((sequence.answers() == answers_alone(policy, 1)));
  }
}

TEST_CASE("Sequences that a stealing executor runs inside each other's calls give the bits that they give alone") {
  for (const char* outer_policy : Policies)
    for (const char* inner_policy : Policies) {
      INFO(outer_policy << ", and in its calls " << inner_policy);
      Stealing stealing;
      Feeding outer(outer_policy, 2, &stealing), inner(inner_policy, 3, &stealing);
      stealing.other_work = [&] { inner.go_on(); };
      CHECK((outer.answers() == answers_alone(outer_policy, 2)));
      CHECK((inner.answers() == answers_alone(inner_policy, 3)));
    }
}

TEST_CASE("A batch in whose bodies a stealing executor runs another batch gives the bits of both alone") {
  const auto run = [](Executor& executor) {
    std::vector<KVCache<AnyPolicy>> caches;
    for (const char* policy : Policies) caches.emplace_back(Shape, AnyPolicy::parse(policy));
    std::vector<CacheCore*> batch;
    for (auto& cache : caches) batch.push_back(&cache);
    const LayeredTokens text(Shape, batch.size() * 40, 4);
    std::vector<float> answers;
    for (std::size_t step = 0; step < 40; ++step)
      for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
        Outputs out(Shape, batch.size());
        decode_batch(batch, layer, text.tokens(layer, step * batch.size(), batch.size()), out.rows(0, batch.size()),
                     executor);
        answers.insert(answers.end(), out.values().begin(), out.values().end());
      }
    return answers;
  };
  SerialExecutor serial;
  const std::vector<float> alone = run(serial);
  Stealing stealing;
  std::vector<float> inner;
  std::size_t runs = 0;
  stealing.other_work = [&] {
    if (runs++ == 30) inner = run(stealing);
  };
  CHECK((run(stealing) == alone));
  CHECK((inner == alone));
}
