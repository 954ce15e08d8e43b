#pragma once
#include "catch_shim.hpp"

#include "kvc/cache/core.hpp"
#include "support/script.hpp"
#include "support/sequence.hpp"

/// Caches that should be the same, now and later.
namespace support {

/// What two caches answer to the same tokens: to single ones, and to a further prompt.
inline void check_same_future(kvc::CacheCore& cache, kvc::CacheCore& twin, const LayeredTokens& text, std::size_t at) {
  const kvc::CacheShape& shape = cache.shape();
  const auto check = [&](std::size_t count, auto call) {
    for (std::size_t layer = 0; layer < shape.layers; ++layer) {
      Outputs a(shape, count), b(shape, count);
      call(cache, layer, text.tokens(layer, at, count), a.rows(0, count));
      call(twin, layer, text.tokens(layer, at, count), b.rows(0, count));
      REQUIRE((a == b));
    }
    at += count;
  };
  const auto decode = [](kvc::CacheCore& to, std::size_t layer, const kvc::Tokens& tokens, kvc::Rows<float> out) {
    to.decode(layer, tokens, out);
  };
  const auto prefill = [](kvc::CacheCore& to, std::size_t layer, const kvc::Tokens& tokens, kvc::Rows<float> out) {
    to.prefill(layer, tokens, out);
  };
  for (int step = 0; step < 20; ++step) check(1, decode);
  CHECK(difference({picture_of(cache)}, {picture_of(twin)}) == "");
  if (!wants_probe(cache)) check(30, prefill);
  for (int step = 0; step < 20; ++step) check(1, decode);
  CHECK(difference({picture_of(cache)}, {picture_of(twin)}) == "");
}

/// A prompt of `prompt` tokens and `steps` generated ones.
inline void feed(kvc::CacheCore& cache, const LayeredTokens& text, std::size_t prompt, std::size_t steps) {
  const kvc::CacheShape& shape = cache.shape();
  std::vector<Outputs> outs(shape.layers, Outputs(shape, prompt));
  prefill_whole(
      cache, [&](std::size_t layer) { return text.tokens(layer, 0, prompt); },
      [&](std::size_t layer) { return outs[layer].rows(0, prompt); });
  for (std::size_t at = prompt; at < prompt + steps; ++at)
    for (std::size_t layer = 0; layer < shape.layers; ++layer) {
      Outputs out(shape, 1);
      cache.decode(layer, text.tokens(layer, at, 1), out.rows(0, 1));
    }
}

}  // namespace support
