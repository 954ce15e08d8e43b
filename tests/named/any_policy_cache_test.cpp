// A cache under a policy that a text names is the cache under the same policy named in C++, bit by bit.
#include <kvc/cache/kv_cache.hpp>
#include <kvc/named/any_policy.hpp>
#include <kvc/policies/all.hpp>

#include <random>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

namespace {

const kvc::CacheShape Shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 32};

/// Outputs of a prompt of 90 random tokens and 40 steps.
std::vector<float> outputs(kvc::CacheCore& cache) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const std::size_t wide = Shape.query_heads * Shape.head_dim, narrow = Shape.kv_heads * Shape.head_dim;
  std::vector<float> all;
  const auto feed = [&](std::size_t tokens, bool prompt) {
    std::vector<float> q(tokens * wide), k(tokens * narrow), v(tokens * narrow), out(tokens * wide);
    for (std::vector<float>* rows : {&q, &k, &v})
      for (float& x : *rows) x = normal(random);
    const kvc::Tokens fed{{q.data(), tokens, wide}, {k.data(), tokens, narrow}, {v.data(), tokens, narrow}};
    for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
      if (prompt)
        cache.prefill(layer, fed, {out.data(), tokens, wide});
      else
        cache.decode(layer, fed, {out.data(), tokens, wide});
      all.insert(all.end(), out.begin(), out.end());
    }
  };
  feed(90, true);
  for (int step = 0; step < 40; ++step) feed(1, false);
  return all;
}

template <class P>
void same(const std::string& text, P policy) {
  INFO(text);
  kvc::KVCache typed(Shape, policy);
  kvc::KVCache named(Shape, kvc::AnyPolicy::parse(text));
  const std::vector<float> expected = outputs(typed);
  REQUIRE(!expected.empty());
  CHECK(outputs(named) == expected);
  CHECK(named.stats().bytes() == typed.stats().bytes());
  for (std::uint32_t layer = 0; layer < 2; ++layer)
    for (std::uint32_t head = 0; head < 2; ++head)
      CHECK(named.positions({layer, head}) == typed.positions({layer, head}));
}

}  // namespace

TEST_CASE("a named policy gives bitwise the results of the same policy in C++") {
  using namespace kvc;
  same("full:type=f32", Full{.type = Scalar::f32});
  same("full:bits=8", Full{.bits = 8});
  same("full:bits=4,fit=half_quadratic", Full{.bits = 4, .fit = kvc::Fit::half_quadratic});
  same("full:ggml=q8_0,value_ggml=q4_0", Full{.ggml = kvc::GgmlType::q8_0, .value_ggml = kvc::GgmlType::q4_0});
  same("h2o:budget=40,normalize", H2O{.budget = 40, .normalize = true});
  same("streaming_llm:recent=30", StreamingLLM{.budget = 34});
  same("snapkv:budget=40,window=8 | kivi:bits=2,residual=32",
       SnapKV{.budget = 40, .window = 8} | KIVI{.bits = 2, .residual = 32});
  const SnapKV base{.window = 8};
  same("ada_kv:base=snapkv,window=8,keep=0.5", AdaKV{.base = base, .budget = Budget::fraction(0.5)});
  same("knorm:keep=0.25,pyramid=10", Knorm{.budget = Budget::pyramid(Budget::fraction(0.25), 0, 10)});
  same("quest:tokens=32,page=8,dense_layers=0", Quest{.tokens = 32, .page = 8, .dense_layers = 0});
  same("razor_attention:heads=none,sinks=2,local=24,divisor=4 | kivi:bits=4,residual=32,sinks=3",
       RazorAttention{.heads = HeadTable{}, .sinks = 2, .local = 24, .divisor = 4} |
           KIVI{.bits = 4, .residual = 32, .sinks = 3});
  same("razor_attention:heads=none,budget=40,compensation=unweighted,when=prompt_end",
       RazorAttention{.heads = HeadTable{},
                      .budget = 40,
                      .compensation = RazorAttention::Compensation::unweighted,
                      .when = When::prompt_end});
}

TEST_CASE("a stage that a text limits to some layers is PerLayer") {
  using namespace kvc;
  same("[0] streaming_llm:budget=30 | [1-] snapkv:budget=40,window=8 | kivi:bits=4,residual=32",
       PerLayer{StreamingLLM{.budget = 30}, 0, 0} | PerLayer{SnapKV{.budget = 40, .window = 8}, 1} |
           KIVI{.bits = 4, .residual = 32});
}

TEST_CASE("a policy that scores layers together may be limited to the upper ones") {
  using namespace kvc;
  same("[1-] ada_kv:base=knorm,budget=40", PerLayer{AdaKV{.base = Knorm{}, .budget = 40}, 1});
}

TEST_CASE("policies change what the cache holds") {
  const auto slots = [](const char* text) {
    kvc::KVCache cache(Shape, kvc::AnyPolicy::parse(text));
    outputs(cache);
    return cache.stats().slots;
  };
  CHECK(slots("full") == 4 * 130);
  CHECK(slots("quest:tokens=32,dense_layers=0") == 4 * 130);
  CHECK(slots("h2o:budget=40") == 4 * 40);
  CHECK(slots("streaming_llm:budget=40") == 4 * 40);
  CHECK(slots("snapkv:budget=40,window=8") == 4 * (40 + 40));
  CHECK(slots("razor_attention:heads=none,budget=40") == 4 * 40);
  CHECK(slots("razor_attention:heads=none,budget=40,when=prompt_end") == 4 * (40 + 40));
  CHECK(slots("knorm:keep=0.5") == 4 * (45 + 40));
  CHECK(slots("ada_kv:base=knorm,keep=0.5,safeguard=minimum") == 4 * (45 + 40));
  CHECK(slots("[0] knorm:budget=10 | [1] knorm:budget=20") == 2 * (10 + 40) + 2 * (20 + 40));
}

TEST_CASE("a policy that cannot work on the model is refused before any token comes") {
  CHECK_THROWS_AS(kvc::KVCache(Shape, kvc::AnyPolicy::parse("snapkv:budget=32")), kvc::Error);
  CHECK_THROWS_AS(kvc::KVCache(Shape, kvc::AnyPolicy::parse("kivi:group=24,residual=24")), kvc::Error);
  CHECK_THROWS_AS(kvc::KVCache(Shape, kvc::AnyPolicy::parse("kivi | full:bits=8")), kvc::Error);
  CHECK_THROWS_AS(kvc::KVCache(Shape, kvc::AnyPolicy::parse("ada_kv:base=kivi")), kvc::Error);
  CHECK_THROWS_AS(kvc::KVCache(Shape, kvc::AnyPolicy::parse("[2-] kivi")), kvc::Error);
  for (const char* text : {"h2o", "streaming_llm", "external_scores"})
    CHECK(support::error_text([&] {
            kvc::KVCache(Shape, kvc::AnyPolicy::parse(text + std::string(":positions=in_cache")));
          }) == "CacheShape::rotary: in-cache positions need the model's rotary table, but it is empty");
}

TEST_CASE("every named policy works as it is by default, once the model's facts are there") {
  kvc::CacheShape shape = Shape;
  shape.rotary = kvc::Rotary::standard(shape.head_dim);
  for (const std::string& name : kvc::AnyPolicy::names()) {
    INFO(name);
    kvc::AnyPolicy policy = kvc::AnyPolicy::parse(name);
    policy.set_default(kvc::HeadTable(2, 2, {0, 1, 0, 1}));
    CHECK_NOTHROW(kvc::KVCache(shape, policy));
  }
}
