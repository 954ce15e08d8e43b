#include "catch_shim.hpp"

#include <cmath>
#include <string>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/simd/isa.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;
using support::Outputs;
using support::RandomTokens;

namespace {

/// What one token attends to, over `prompt` tokens sealed as the policy says.
std::vector<float> decoded(const CacheShape& shape, const std::string& policy, std::size_t prompt,
                           Arithmetic arithmetic) {
  const RandomTokens text(shape, prompt + 1, 5);
  KVCache<AnyPolicy> cache(shape, AnyPolicy::parse(policy), {.dense = {Scalar::f32}, .arithmetic = arithmetic});
  if (prompt != 0) cache.prefill(0, text.tokens(0, prompt), {});
  Outputs out(shape, 1);
  cache.decode(0, text.tokens(prompt, 1), out.rows(0, 1));
  return out.values();
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(double(a[i]) - b[i], 2);
  return std::sqrt(sum / double(a.size()));
}

/// Lengths around every boundary of blocks and registers.
constexpr std::size_t Lengths[] = {0, 1, 7, 31, 32, 33, 255, 256, 257, 1000};

}  // namespace

TEST_CASE("Attention over every quantized format errs by at most 5 % of the format's own error, at every level") {
  for (const std::size_t group : {1u, 3u, 4u})
    for (const char* policy : {"full:bits=8", "full:bits=4", "full:bits=3", "full:bits=2", "kivi:bits=8,residual=32",
                               "kivi:bits=4,residual=32", "kivi:bits=3,residual=32", "kivi:bits=2,residual=32"}) {
      const CacheShape shape{.query_heads = 2 * group, .kv_heads = 2, .head_dim = 64};
      for (const std::size_t length : Lengths) {
        std::vector<float> exact, original;
        {
          ScopedIsa portable(Isa::portable);
          exact = decoded(shape, policy, length, Arithmetic::exact);
          original = decoded(shape, "full", length, Arithmetic::exact);
        }
        const double format_error = distance(exact, original);
        for (const Isa isa : available_isas()) {
          ScopedIsa scoped(isa);
          INFO(to_string(isa) << ": " << policy << ", group " << group << ", " << length << " tokens");
          // Without a sealed row, or with few, what is left is the rounding of f32.
          CHECK(distance(decoded(shape, policy, length, Arithmetic::accurate), exact) <= 0.05 * format_error + 2e-6);
          CHECK(distance(decoded(shape, policy, length, Arithmetic::exact), exact) <= 2e-6);
        }
      }
    }
}
