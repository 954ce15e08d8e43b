#include "catch_shim.hpp"

#include <kvc/c_api.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "kvc/named/any_policy.hpp"
#include "kvc/policies/all.hpp"
#include "support/sequence.hpp"

// The functions of C do what the calls of C++ do, and nothing else.

using namespace support;

namespace {

const kvc::CacheShape Shape{
    .layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .rotary = kvc::Rotary::standard(16)};
const kvc_shape CShape{.layers = 2,
                       .query_heads = 4,
                       .kv_heads = 2,
                       .head_dim = 16,
                       .value_dim = 0,
                       .scale = 0,
                       .softcap = 0,
                       .inv_freq = Shape.rotary.inv_freq.data(),
                       .inv_freq_count = Shape.rotary.inv_freq.size(),
                       .interleaved = 0,
                       .windows = nullptr,
                       .sink_logits = nullptr};
constexpr const char* Policy = "h2o:budget=24 | kivi:bits=4,group=16,residual=16";

kvc_tensor tensor(const void* data, std::size_t tokens, std::size_t heads, std::size_t dim) {
  return {const_cast<void*>(data), KVC_F32, tokens, heads, dim, 0, 0};
}
kvc_tokens c_tokens(const kvc::Tokens& tokens) {
  const std::size_t count = tokens.q.count;
  return {.q = tensor(tokens.q.data, count, Shape.query_heads, Shape.head_dim),
          .k = tensor(tokens.k.data, count, Shape.kv_heads, Shape.head_dim),
          .v = tensor(tokens.v.data, count, Shape.kv_heads, Shape.head_dim),
          .positions = nullptr,
          .scores = nullptr};
}

/// A cache of C that is let go of.
class Handle {
 public:
  explicit Handle(const char* policy, const kvc_options* options = nullptr) {
    REQUIRE(kvc_create(&CShape, policy, options, &cache_) == KVC_OK);
  }
  explicit Handle(kvc_cache* cache) : cache_(cache) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { kvc_destroy(cache_); }
  kvc_cache* get() const { return cache_; }

 private:
  kvc_cache* cache_ = nullptr;
};

const LayeredTokens& text() {
  static const LayeredTokens tokens(Shape, 300, 90);
  return tokens;
}

/// Feeds tokens [at, at + count) to a cache of C++, or of C, and returns what all layers answered.
template <class Call>
std::vector<float> answers(std::size_t at, std::size_t count, Call call) {
  const std::size_t width = Shape.query_heads * Shape.head_dim;
  std::vector<float> all(Shape.layers * count * width);
  for (std::size_t layer = 0; layer < Shape.layers; ++layer)
    call(layer, text().tokens(layer, at, count), all.data() + layer * count * width);
  return all;
}
kvc::Rows<float> rows(float* out, std::size_t count) {
  return {out, count, Shape.query_heads * Shape.head_dim};
}
kvc_tensor c_out(float* out, std::size_t count) {
  return tensor(out, count, Shape.query_heads, Shape.head_dim);
}

std::vector<float> prefill(kvc_cache* cache, std::size_t at, std::size_t count, bool last = true) {
  return answers(at, count, [&](std::size_t layer, const kvc::Tokens& tokens, float* out) {
    const kvc_tokens own = c_tokens(tokens);
    const kvc_tensor answer = c_out(out, count);
    REQUIRE(kvc_prefill(cache, layer, &own, &answer, last ? 1 : 0, nullptr) == KVC_OK);
  });
}
std::vector<float> decode(kvc_cache* cache, std::size_t at) {
  return answers(at, 1, [&](std::size_t layer, const kvc::Tokens& tokens, float* out) {
    const kvc_tokens own = c_tokens(tokens);
    const kvc_tensor answer = c_out(out, 1);
    REQUIRE(kvc_decode(cache, layer, &own, &answer, nullptr) == KVC_OK);
  });
}

/// Threads of an engine: one for every other body.
void run_on_threads(void* user, std::size_t count, void (*body)(void*, std::size_t), void* task) {
  ++*static_cast<int*>(user);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < count; ++i) {
    if (i % 2 == 0)
      threads.emplace_back(body, task, i);
    else
      body(task, i);
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("Calls of C answer bit for bit what the calls of C++ answer") {
  kvc::KVCache cache(Shape, kvc::AnyPolicy::parse(Policy));
  const Handle handle(Policy);
  CHECK(std::string(kvc_policy(handle.get())) == cache.policy().to_string());
  const auto plain = [&](auto call) {
    return [&cache, call](std::size_t layer, const kvc::Tokens& tokens, float* out) {
      call(cache, layer, tokens, rows(out, tokens.q.count));
    };
  };
  const auto decoded = plain([](kvc::CacheCore& core, std::size_t layer, const kvc::Tokens& tokens,
                                kvc::Rows<float> out) { core.decode(layer, tokens, out); });
  const auto prefilled = plain([](kvc::CacheCore& core, std::size_t layer, const kvc::Tokens& tokens,
                                  kvc::Rows<float> out) { core.prefill(layer, tokens, out); });
  CHECK(prefill(handle.get(), 0, 60) == answers(0, 60, prefilled));
  for (std::size_t at = 60; at < 80; ++at) CHECK(decode(handle.get(), at) == answers(at, 1, decoded));

  kvc_truncation truncation = KVC_EXACT;
  CHECK(kvc_can_truncate(handle.get(), 70, &truncation) == KVC_OK);
  CHECK(truncation == KVC_LOST);
  const auto drafted = plain([](kvc::CacheCore& core, std::size_t layer, const kvc::Tokens& tokens,
                                kvc::Rows<float> out) { core.draft(layer, tokens, out); });
  const auto c_drafted = answers(80, 4, [&](std::size_t layer, const kvc::Tokens& tokens, float* out) {
    const kvc_tokens own = c_tokens(tokens);
    const kvc_tensor answer = c_out(out, 4);
    REQUIRE(kvc_draft(handle.get(), layer, &own, &answer, nullptr) == KVC_OK);
  });
  CHECK(c_drafted == answers(80, 4, drafted));
  CHECK(kvc_accept(handle.get(), 3) == KVC_OK);
  cache.accept(3);
  CHECK(kvc_next_position(handle.get()) == cache.next_position());

  std::vector<float> lse(2 * Shape.query_heads), expected_lse(2 * Shape.query_heads);
  const auto attended = answers(90, 2, [&](std::size_t layer, const kvc::Tokens& tokens, float* out) {
    const kvc_tensor queries = c_tokens(tokens).q, answer = c_out(out, 2);
    REQUIRE(kvc_attend(handle.get(), layer, &queries, &answer, lse.data()) == KVC_OK);
  });
  CHECK(attended == answers(90, 2, [&](std::size_t layer, const kvc::Tokens& tokens, float* out) {
          cache.attend(layer, tokens.q, rows(out, 2), expected_lse);
        }));
  CHECK(lse == expected_lse);

  kvc_stats stats;
  CHECK(kvc_get_stats(handle.get(), &stats) == KVC_OK);
  CHECK(stats.bytes == cache.stats().bytes());
  CHECK(stats.seen == 83);
  std::vector<int32_t> positions(100);
  positions.resize(kvc_positions(handle.get(), 1, 1, positions.data(), positions.size()));
  CHECK(positions == cache.positions({1, 1}));
  int exact = 7;
  CHECK(kvc_truncate(handle.get(), 70, &exact) == KVC_OK);
  CHECK(exact == (cache.truncate(70) ? 1 : 0));
  CHECK(kvc_clear(handle.get()) == KVC_OK);
  CHECK(kvc_next_position(handle.get()) == 0);
}

TEST_CASE("A call of C that fails says what was wrong, and changes nothing") {
  kvc_cache* none = nullptr;
  CHECK(kvc_create(&CShape, "snapkv:bugdet=4", nullptr, &none) == KVC_UNKNOWN_NAME);
  CHECK(std::string(kvc_last_error()).find("budget") != std::string::npos);
  CHECK(kvc_create(&CShape, "snapkv:budget=4", nullptr, &none) == KVC_IMPOSSIBLE_BUDGET);
  CHECK(kvc_create(nullptr, "full", nullptr, &none) == KVC_INVALID_ARGUMENT);
  CHECK(std::string(kvc_last_error()) == "create: shape is NULL");
  const kvc_options options{
      .dense = "f8", .threads = 0, .parallel_for = nullptr, .user = nullptr, .skips_finite_checks = 0};
  CHECK(kvc_create(&CShape, "full", &options, &none) == KVC_INVALID_ARGUMENT);
  CHECK(none == nullptr);

  const Handle handle("full");
  kvc_tokens tokens = c_tokens(text().tokens(0, 0, 3));
  std::vector<float> out(3 * Shape.query_heads * Shape.head_dim);
  const kvc_tensor answer = c_out(out.data(), 3);
  tokens.k.heads = 3;
  CHECK(kvc_prefill(handle.get(), 0, &tokens, &answer, 1, nullptr) == KVC_SHAPE_MISMATCH);
  CHECK(std::string(kvc_last_error()).starts_with("prefill: k: got [tokens, 3, 16]"));
  tokens = c_tokens(text().tokens(0, 0, 3));
  CHECK(kvc_prefill(handle.get(), 7, &tokens, &answer, 1, nullptr) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_prefill(nullptr, 0, &tokens, &answer, 1, nullptr) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_decode(handle.get(), 0, nullptr, &answer, nullptr) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_accept(handle.get(), 1) == KVC_INVALID_ARGUMENT);
  std::vector<float> poisoned(3 * Shape.kv_heads * Shape.head_dim, 1.0f);
  poisoned[5] = std::numeric_limits<float>::quiet_NaN();
  tokens.v.data = poisoned.data();
  CHECK(kvc_prefill(handle.get(), 0, &tokens, &answer, 1, nullptr) == KVC_NON_FINITE);
  CHECK(kvc_next_position(handle.get()) == 0);
  CHECK(kvc_positions(handle.get(), 9, 0, nullptr, 0) == 0);
}

TEST_CASE("A fork of C outlives what it was forked from, with the threads of both") {
  const kvc_options options{
      .dense = "f32", .threads = 2, .parallel_for = nullptr, .user = nullptr, .skips_finite_checks = 1};
  kvc_cache* fork = nullptr;
  std::vector<float> expected;
  {
    const Handle handle("kivi:group=16,residual=16", &options);
    prefill(handle.get(), 0, 50);
    REQUIRE(kvc_fork(handle.get(), &fork) == KVC_OK);
    expected = decode(handle.get(), 50);
  }
  const Handle owner(fork);
  CHECK(decode(fork, 50) == expected);
}

TEST_CASE("An engine's own threads run what they are given") {
  int calls = 0;
  const kvc_options options{
      .dense = nullptr, .threads = 0, .parallel_for = run_on_threads, .user = &calls, .skips_finite_checks = 0};
  const Handle threaded(Policy, &options), alone(Policy);
  CHECK(prefill(threaded.get(), 0, 60) == prefill(alone.get(), 0, 60));
  CHECK(decode(threaded.get(), 60) == decode(alone.get(), 60));
  CHECK(calls > 0);
}

TEST_CASE("Sequences of C are decoded together as they are alone") {
  const Handle first(Policy), second("snapkv:budget=24,window=8"), first_alone(Policy),
      second_alone("snapkv:budget=24,window=8");
  for (const Handle* handle : {&first, &first_alone}) prefill(handle->get(), 0, 40);
  for (const Handle* handle : {&second, &second_alone}) prefill(handle->get(), 50, 70);
  kvc_cache* const both[] = {first.get(), second.get()};
  const auto together = answers(120, 2, [&](std::size_t layer, const kvc::Tokens& tokens, float* out) {
    const kvc_tokens own = c_tokens(tokens);
    const kvc_tensor answer = c_out(out, 2);
    REQUIRE(kvc_decode_batch(both, 2, layer, &own, &answer, nullptr) == KVC_OK);
  });
  const std::vector<float> a = decode(first_alone.get(), 120), b = decode(second_alone.get(), 121);
  const std::size_t width = Shape.query_heads * Shape.head_dim;
  for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
    CHECK(std::memcmp(&together[2 * layer * width], &a[layer * width], width * sizeof(float)) == 0);
    CHECK(std::memcmp(&together[(2 * layer + 1) * width], &b[layer * width], width * sizeof(float)) == 0);
  }
}

TEST_CASE("A cache of C is saved and loaded, and goes on as if nothing had happened") {
  const Handle handle(Policy), loaded(Policy);
  prefill(handle.get(), 0, 60);
  std::vector<unsigned char> file;
  const kvc_sink sink = [](void* user, const void* data, std::size_t bytes) {
    auto& to = *static_cast<std::vector<unsigned char>*>(user);
    const auto* from = static_cast<const unsigned char*>(data);
    to.insert(to.end(), from, from + bytes);
    return 1;
  };
  std::uint64_t written = 0, taken = 0;
  REQUIRE(kvc_save(handle.get(), sink, &file, &written) == KVC_OK);
  CHECK(written == file.size());
  struct Reader {
    const std::vector<unsigned char>& file;
    std::size_t at = 0;
  } reader{file};
  const kvc_source source = [](void* user, void* data, std::size_t bytes) {
    auto& from = *static_cast<Reader*>(user);
    const std::size_t count = std::min(bytes, from.file.size() - from.at);
    std::memcpy(data, from.file.data() + from.at, count);
    from.at += count;
    return count;
  };
  REQUIRE(kvc_load(loaded.get(), source, &reader, &taken) == KVC_OK);
  CHECK(taken == written);
  for (std::size_t at = 60; at < 70; ++at) CHECK(decode(loaded.get(), at) == decode(handle.get(), at));
  Reader short_reader{file, 100};
  CHECK(kvc_load(loaded.get(), source, &short_reader, nullptr) == KVC_BAD_FILE);
  CHECK(decode(loaded.get(), 70) == decode(handle.get(), 70));
}

TEST_CASE("Windows and sink logits of layers, log-sum-exps and edits are those of C++") {
  kvc::CacheShape shape = Shape;
  shape.each_layer = {{.window = 20, .sink_logits = {}}, {.window = 0, .sink_logits = {}}};
  const std::vector<float> sinks = {0.5f, -1, 2, 0, 1, 1, -3, 0.25f};
  for (std::size_t layer = 0; layer < 2; ++layer)
    shape.each_layer[layer].sink_logits.assign(sinks.begin() + static_cast<std::ptrdiff_t>(4 * layer),
                                               sinks.begin() + static_cast<std::ptrdiff_t>(4 * layer + 4));
  const std::int32_t windows[] = {20, 0};
  kvc_shape own = CShape;
  own.windows = windows;
  own.sink_logits = sinks.data();
  kvc_cache* made = nullptr;
  REQUIRE(kvc_create(&own, "full", nullptr, &made) == KVC_OK);
  const Handle handle(made);
  kvc::KVCache cache(shape, kvc::AnyPolicy::parse("full"));
  const auto check = [&](std::size_t at, std::size_t count) {
    std::vector<float> lse(count * Shape.query_heads), expected_lse(lse.size());
    const auto c_answers = answers(at, count, [&](std::size_t layer, const kvc::Tokens& tokens, float* out) {
      const kvc_tokens fed = c_tokens(tokens);
      const kvc_tensor answer = c_out(out, count);
      REQUIRE((count == 1 ? kvc_decode(handle.get(), layer, &fed, &answer, lse.data())
                          : kvc_prefill(handle.get(), layer, &fed, &answer, 1, lse.data())) == KVC_OK);
    });
    CHECK(c_answers == answers(at, count, [&](std::size_t layer, const kvc::Tokens& tokens, float* out) {
            if (count == 1)
              cache.decode(layer, tokens, rows(out, 1), expected_lse);
            else
              cache.prefill(layer, tokens, rows(out, count), true, expected_lse);
          }));
    CHECK(lse == expected_lse);
  };
  check(0, 60);
  check(60, 1);
  REQUIRE(kvc_remove(handle.get(), 45, 50) == KVC_OK);
  REQUIRE(kvc_shift(handle.get(), 50, 61, -5) == KVC_OK);
  cache.remove(45, 50);
  cache.shift(50, 61, -5);
  CHECK(kvc_next_position(handle.get()) == 56);
  CHECK(cache.next_position() == 56);
  check(70, 1);
  CHECK(kvc_shift(handle.get(), 50, 56, -20) == KVC_INVALID_ARGUMENT);
}

TEST_CASE("C knows the library's version and the names of its policies") {
  CHECK(std::string(kvc_version()).find('.') != std::string::npos);
  const std::string names = kvc_policy_names();
  for (const std::string& name : kvc::AnyPolicy::names())
    CHECK(("\n" + names).find("\n" + name + "\n") != std::string::npos);
}
