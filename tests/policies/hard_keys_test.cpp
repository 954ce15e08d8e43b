// Keys as some models have them: a constant many times as long as what differs between tokens, which exact attention does not see.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/kvc.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;

namespace {

const CacheShape Shape{.layers = 1, .query_heads = 3, .kv_heads = 1, .head_dim = 64};
constexpr std::size_t Prompt = 512, Asked = 32;
enum class Constant { none, long_vector, and_large_channel };

std::vector<float> normal(std::size_t count, std::mt19937& random) {
  std::normal_distribution<float> distribution;
  std::vector<float> numbers(count);
  for (float& x : numbers) x = distribution(random);
  return numbers;
}

/// How far a compressed cache's attention is from that of all tokens without the constant, relative to its length.
double error_of(const std::string& policy, Constant constant) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> unit(0, 1);
  std::vector<float> direction = normal(64, random), keys = normal(Prompt * 64, random);
  const float length = norm(direction);
  for (float& x : direction) x *= 900 / length;
  for (std::size_t token = 0; token < Prompt; ++token) keys[token * 64 + 5] = unit(random);
  const std::vector<float> queries = normal(Prompt * 192, random), values = normal(Prompt * 64, random),
                           probe = normal(Prompt * 192, random), asked = normal(Asked * 192, random);
  std::vector<float> hard = keys;
  for (std::size_t token = 0; constant != Constant::none && token < Prompt; ++token)
    for (std::size_t c = 0; c < 64; ++c)
      hard[token * 64 + c] += direction[c] + (constant == Constant::and_large_channel && c == 5 ? 600.0f : 0.0f);

  const Tokens plain{
      .q = {queries.data(), Prompt, 192}, .k = {keys.data(), Prompt, 64}, .v = {values.data(), Prompt, 64}};
  Tokens given = plain;
  given.k = {hard.data(), Prompt, 64};
  KVCache exact(Shape, Full{}, {.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact});
  KVCache compressed(Shape, AnyPolicy::parse(policy));
  support::Outputs out(Shape, Prompt), wanted(Shape, Asked), got(Shape, Asked);
  exact.prefill(0, plain, out.rows(0, Prompt));
  compressed.prefill(0, given, out.rows(0, Prompt), false);
  given.q = {probe.data(), Prompt, 192};
  compressed.probe(0, given, out.rows(0, Prompt), 0, Position(Prompt));
  compressed.compress();
  exact.attend(0, {asked.data(), Asked, 192}, wanted.rows(0, Asked));
  compressed.attend(0, {asked.data(), Asked, 192}, got.rows(0, Asked));
  double missed = 0, squares = 0;
  for (std::size_t i = 0; i < wanted.values().size(); ++i) {
    missed += std::pow(double(got.values()[i]) - double(wanted.values()[i]), 2);
    squares += std::pow(double(wanted.values()[i]), 2);
  }
  return std::sqrt(missed / squares);
}

}  // namespace

TEST_CASE(
    "A constant in all keys, and a channel far from 0, cost KIVI and Compact two percent of their error at most") {
  for (const char* policy : {"kivi:bits=4", "kivi:bits=2", "compact:keep=0.25", "refit:policy=foresight,keep=0.25"}) {
    const double plain = error_of(policy, Constant::none);
    for (const Constant constant : {Constant::long_vector, Constant::and_large_channel}) {
      INFO(policy << ": " << plain << " without the constant");
      CHECK(error_of(policy, constant) < 1.02 * plain);
    }
  }
}

TEST_CASE("Groups along a token cannot carry such keys: their scale is of the constant") {
  CHECK(error_of("full:bits=4", Constant::long_vector) > 10 * error_of("full:bits=4", Constant::none));
}
