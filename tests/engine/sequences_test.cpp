#include "engine/sequences.hpp"

#include <cmath>
#include <memory>

#include "catch_shim.hpp"
#include "engine/dense_attention.hpp"
#include "engine/gguf_writer.hpp"
#include "engine/thread_pool.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/policies/streaming_llm.hpp"

// The engine with kvc's caches, on a model of two layers with random weights.

using FullCache = kvc::KVCache<kvc::Full>;

namespace {

constexpr std::size_t Vocabulary = 96;

struct Tiny {
  engine::ThreadPool pool{2};
  TemporaryFile file{tiny_model().bytes()};
  engine::Model model = engine::Model::load(file.path(), pool);
  engine::Workspace workspace;

  std::unique_ptr<FullCache> full_cache() {
    return std::make_unique<FullCache>(model.cache_shape(), kvc::Full{kvc::Scalar::f32});
  }

  std::vector<float> prefill(kvc::CacheCore& cache, const std::vector<int>& tokens, std::size_t rows,
                             const engine::PrefillOptions& options = {}) {
    std::vector<float> logits(rows * Vocabulary);
    engine::prefill(model, cache, tokens, {logits.data(), rows, Vocabulary}, workspace, options);
    return logits;
  }

  std::vector<float> step(kvc::CacheCore& cache, int token, kvc::Position position) {
    std::vector<float> logits(Vocabulary);
    kvc::CacheCore* const caches[] = {&cache};
    engine::step(model, caches, {&token, 1}, {&position, 1}, {logits.data(), 1, Vocabulary}, workspace);
    return logits;
  }
};

std::vector<int> some_tokens(std::size_t count) {
  std::vector<int> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<int>((3 + 7 * i) % Vocabulary);
  return tokens;
}

float largest_difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

}  // namespace

TEST_CASE("a prompt through kvc's full cache gives the logits of plain attention") {
  Tiny tiny;
  const auto tokens = some_tokens(50);
  const auto cache = tiny.full_cache();
  const auto logits = tiny.prefill(*cache, tokens, tokens.size());
  std::vector<float> expected(logits.size());
  std::vector<kvc::Position> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), 0);
  DenseAttention attention(tiny.model.cache_shape(), tiny.pool);
  tiny.model.forward(tokens, positions, attention, {expected.data(), tokens.size(), Vocabulary}, tiny.workspace);
  CHECK(largest_difference(logits, expected) < 1e-4f);
}

TEST_CASE("a prompt in chunks gives the last logits of a prompt in one piece") {
  Tiny tiny;
  const auto tokens = some_tokens(50);
  const auto whole = tiny.full_cache(), parts = tiny.full_cache();
  const auto expected = tiny.prefill(*whole, tokens, 1);
  CHECK(largest_difference(tiny.prefill(*parts, tokens, 1, {.chunk = 16}), expected) < 1e-4f);
  CHECK(parts->stats().seen == whole->stats().seen);
}

TEST_CASE("steps after a prompt give the logits of a longer prompt") {
  Tiny tiny;
  const auto tokens = some_tokens(30);
  const auto whole = tiny.full_cache(), stepped = tiny.full_cache();
  const auto expected = tiny.prefill(*whole, tokens, tokens.size());
  tiny.prefill(*stepped, {tokens.begin(), tokens.begin() + 20}, 0);
  for (std::size_t i = 20; i < tokens.size(); ++i) {
    const auto logits = tiny.step(*stepped, tokens[i], static_cast<kvc::Position>(i));
    CHECK(largest_difference(logits, std::span(expected).subspan(i * Vocabulary, Vocabulary)) < 1e-4f);
  }
}

TEST_CASE("a prompt computed once fills every cache, and sequences in step equal sequences alone") {
  Tiny tiny;
  const auto tokens = some_tokens(24);
  const auto first = tiny.full_cache(), alone = tiny.full_cache();
  kvc::KVCache streaming(tiny.model.cache_shape(), kvc::StreamingLLM{.budget = 12});
  kvc::CacheCore* const caches[] = {first.get(), &streaming};
  std::vector<float> logits(2 * Vocabulary);
  engine::prefill(tiny.model, caches, tokens, {}, tiny.workspace);
  CHECK(streaming.stats().seen == first->stats().seen);
  CHECK(streaming.stats().slots < first->stats().slots);
  tiny.prefill(*alone, tokens, 0);

  const int next[] = {7, 7};
  const kvc::Position positions[] = {24, 24};
  engine::step(tiny.model, caches, next, positions, {logits.data(), 2, Vocabulary}, tiny.workspace);
  const auto expected = tiny.step(*alone, 7, 24);
  CHECK(largest_difference(std::span(logits).first(Vocabulary), expected) < 1e-4f);
  CHECK(largest_difference(std::span(logits).last(Vocabulary), expected) > 1e-4f);
}

TEST_CASE("a prompt longer than the model's context is refused before the cache changes") {
  Tiny tiny;
  const auto cache = tiny.full_cache();
  REQUIRE_THROWS_AS(tiny.prefill(*cache, some_tokens(65), 1), kvc::Error);
  REQUIRE_THROWS_AS(tiny.prefill(*cache, some_tokens(60), 1, {.first = 5}), kvc::Error);
  REQUIRE_THROWS_AS(tiny.prefill(*cache, some_tokens(30), 30, {.chunk = 8}), kvc::Error);
  CHECK(cache->stats().seen == 0);
  REQUIRE_NOTHROW(tiny.prefill(*cache, some_tokens(64), 1));
}

TEST_CASE("a step with another number of tokens or rows than caches is refused") {
  Tiny tiny;
  const auto cache = tiny.full_cache();
  tiny.prefill(*cache, some_tokens(4), 0);
  kvc::CacheCore* const caches[] = {cache.get()};
  const int tokens[] = {1, 2};
  const kvc::Position positions[] = {4, 4};
  REQUIRE_THROWS_AS(engine::step(tiny.model, caches, tokens, positions, {}, tiny.workspace), kvc::Error);
  std::vector<float> logits(2 * Vocabulary);
  REQUIRE_THROWS_AS(
      engine::step(tiny.model, caches, {tokens, 1}, {positions, 1}, {logits.data(), 2, Vocabulary}, tiny.workspace),
      kvc::Error);
  CHECK(cache->stats().seen == 4);
}
