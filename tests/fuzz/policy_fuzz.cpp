// Policy texts: parsed, written again, and where a cache can be made under them, run for a few steps. Byte 0 chooses the shape,
// byte 1 the length of the prompt, the rest is the text.
#include <cmath>
#include <optional>
#include <string>

#include "fuzz/fuzz_input.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/error.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/random_tokens.hpp"

namespace {

const kvc::CacheShape Shapes[] = {
    {.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 32, .rotary = kvc::Rotary::standard(32)},
    {.layers = 1, .query_heads = 3, .kv_heads = 1, .head_dim = 24, .value_dim = 8},
    {.layers = 4, .query_heads = 2, .kv_heads = 2, .head_dim = 64, .rotary = kvc::Rotary::standard(64)},
};

/// A file that a text names would be read: the fuzzer has no business in the file system.
bool names_a_file(const std::string& text) {
  return text.find('/') != std::string::npos || text.find('.') == 0;
}

void run(const kvc::CacheShape& shape, const kvc::AnyPolicy& policy, std::size_t prompt) {
  const support::LayeredTokens text(shape, prompt + 8, 5);
  kvc::KVCache cache(shape, policy);
  support::Outputs out(shape, prompt + 8);
  const auto each_layer = [&](auto call) {
    for (std::size_t layer = 0; layer < shape.layers; ++layer) call(layer);
  };
  each_layer([&](std::size_t layer) { cache.prefill(layer, text.tokens(layer, 0, prompt), out.rows(0, prompt)); });
  for (std::size_t t = prompt; t < prompt + 8; ++t)
    each_layer([&](std::size_t layer) { cache.decode(layer, text.tokens(layer, t, 1), out.rows(t, 1)); });
  cache.make_room(3);
  static_cast<void>(cache.truncate(static_cast<kvc::Position>(prompt / 2)));
  for (const float x : out.values())
    if (!std::isfinite(x)) fuzz::fail("an output is not a number");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Script script(data, size);
  const kvc::CacheShape& shape = Shapes[script.below(std::size(Shapes))];
  const std::size_t prompt = script.below(120);
  const std::string text(script.rest());
  if (names_a_file(text)) return 0;
  std::optional<kvc::AnyPolicy> policy;
  try {
    policy = kvc::AnyPolicy::parse(text);
  } catch (const kvc::Error&) {
    return 0;
  }
  const std::string written = policy->to_string();
  if (kvc::AnyPolicy::parse(written).to_string() != written)
    fuzz::fail("a text changed when it was parsed: " + written);
  try {
    run(shape, *policy, prompt);
    fuzz::note_understood();
  } catch (const kvc::Error&) {
  }
  return 0;
}
