#include <kvc/named/any_policy.hpp>
#include <kvc/policies/all.hpp>

#include <algorithm>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using kvc::AnyPolicy;
using kvc::Budget;
using support::error_text;

namespace {

const kvc::CacheShape Shape{.layers = 4, .query_heads = 4, .kv_heads = 2};

std::string complaint(const std::string& text) {
  return error_text([&] { AnyPolicy::parse(text); });
}

/// The policy of the only stage.
template <class P>
P only(const AnyPolicy& any) {
  const kvc::Stages stages = any.stages();
  const auto* stage = stages.size() == 1 ? dynamic_cast<const kvc::StageOf<P>*>(stages[0].get()) : nullptr;
  REQUIRE(stage);
  return stage->policy();
}

/// The policy inside another one.
template <class P>
P inside(const kvc::Member& member) {
  REQUIRE(member);
  return dynamic_cast<const kvc::StageOf<P>&>(member.stage()).policy();
}

/// A policy that only this file knows.
struct KeepsEvery {
  std::size_t step = 2;
  static constexpr auto parameters() {
    return kvc::list(kvc::parameter("step", &KeepsEvery::step, "Every so-many-th token is kept."));
  }
  void evict(kvc::Head<KeepsEvery>& head, kvc::Plan& plan) const {
    for (std::size_t slot = 0; slot < head.size(); slot += step) plan.keep(slot);
  }
};

}  // namespace

TEST_CASE("a text becomes the policies it names, with the parameters it gives") {
  const kvc::Stages stages = AnyPolicy::parse("snapkv:budget=1024,window=32,pooling=max | kivi:bits=4").stages();
  REQUIRE(stages.size() == 2);
  const kvc::SnapKV snap = dynamic_cast<const kvc::StageOf<kvc::SnapKV>&>(*stages[0]).policy();
  CHECK(snap.budget == Budget(1024));
  CHECK(snap.window == 32);
  CHECK(snap.pooling == kvc::Pooling::max);
  CHECK(snap.kernel == 5);
  CHECK(dynamic_cast<const kvc::StageOf<kvc::KIVI>&>(*stages[1]).policy().bits == 4);
}

TEST_CASE("spaces around names, words and bars do not matter") {
  CHECK(AnyPolicy::parse("  snapkv : window = 16 ,kernel=7|kivi ").to_string() == "snapkv:window=16,kernel=7 | kivi");
}

TEST_CASE("a budget is tokens, or a fraction by its point or by the word keep") {
  CHECK(only<kvc::Knorm>(AnyPolicy::parse("knorm:budget=256")).budget == Budget(256));
  CHECK(only<kvc::Knorm>(AnyPolicy::parse("knorm:budget=0.25")).budget == Budget::fraction(0.25));
  CHECK(only<kvc::Knorm>(AnyPolicy::parse("knorm:keep=0.25")).budget == Budget::fraction(0.25));
  CHECK(only<kvc::Knorm>(AnyPolicy::parse("knorm:keep=1")).budget == Budget::fraction(1));
}

TEST_CASE("pyramid lets the budget fall over the layers, wherever it stands in the text") {
  const Budget expected = Budget::pyramid(512, 16, 10);
  CHECK(only<kvc::SnapKV>(AnyPolicy::parse("snapkv:budget=512,window=16,pyramid=10")).budget == expected);
  CHECK(only<kvc::SnapKV>(AnyPolicy::parse("snapkv:pyramid=10,window=16,budget=512")).budget == expected);
  CHECK(only<kvc::SnapKV>(AnyPolicy::parse("snapkv:budget=512,pyramid")).budget == Budget::pyramid(512, 64, 20));
}

TEST_CASE("StreamingLLM's budget can be said as its recent tokens") {
  CHECK(only<kvc::StreamingLLM>(AnyPolicy::parse("streaming_llm:recent=1020")).budget == Budget(1024));
  CHECK(only<kvc::StreamingLLM>(AnyPolicy::parse("streaming_llm:recent=10,sinks=8")).budget == Budget(18));
}

TEST_CASE("a word without a value switches on") {
  CHECK(only<kvc::H2O>(AnyPolicy::parse("h2o:normalize")).normalize);
  CHECK(!only<kvc::H2O>(AnyPolicy::parse("h2o:normalize=false")).normalize);
}

TEST_CASE("a decorator names its base and takes its parameters") {
  const auto ada = only<kvc::AdaKV>(AnyPolicy::parse("ada_kv:base=knorm,budget=100,safeguard=minimum"));
  CHECK(ada.budget == Budget(100));
  CHECK(ada.safeguard == kvc::Safeguard::minimum);
  CHECK(inside<kvc::Knorm>(ada.base).budget == Budget(1024));
  for (const char* text :
       {"ada_kv:window=16,kernel=7", "ada_kv:base=snapkv,kernel=7,window=16", "ada_kv:window=16,base=(snapkv:kernel=7)",
        "(ada_kv: base = ( snapkv:kernel=7,window=16 ) )"}) {
    INFO(text);
    const auto snap = inside<kvc::SnapKV>(only<kvc::AdaKV>(AnyPolicy::parse(text)).base);
    CHECK(snap.window == 16);
    CHECK(snap.kernel == 7);
  }
}

TEST_CASE("an unknown policy is pointed at, with the nearest name and all names") {
  std::string names;
  for (const std::string& name : AnyPolicy::names()) names += (names.empty() ? "" : ", ") + name;
  CHECK(complaint("kivi | snapvk:budget=9") == "unknown policy 'snapvk'; did you mean 'snapkv'? there are: " + names +
                                                   "\n"
                                                   "  kivi | snapvk:budget=9\n"
                                                   "         ^^^^^^");
}

TEST_CASE("an unknown parameter is pointed at, with the nearest and all that the policy has") {
  CHECK(complaint("snapkv:budget=1024,windw=32 | kivi") ==
        "snapkv has no parameter 'windw'; did you mean 'window'? there are: budget, keep, window, kernel, pooling, "
        "reduce, order, pyramid\n"
        "  snapkv:budget=1024,windw=32 | kivi\n"
        "                     ^^^^^");
}

TEST_CASE("a value of the wrong kind is pointed at, with what was expected") {
  CHECK(complaint("kivi:bits=two") ==
        "'bits' of kivi takes a whole number, got 'two'\n"
        "  kivi:bits=two\n"
        "            ^^^");
  CHECK(complaint("snapkv:pooling=mean") ==
        "'pooling' of snapkv takes average | max, got 'mean'\n"
        "  snapkv:pooling=mean\n"
        "                 ^^^^");
}

TEST_CASE("texts that contradict themselves or stop short are refused") {
  for (const char* text : {"", "snapkv |", "| kivi", "snapkv:budget", "snapkv:window=1,window=2", "kivi:bits=-2",
                           "kivi:bits=2.0", "snapkv:keep=0", "snapkv:budget=1.5", "snapkv:keep=nan",
                           "snapkv:budget=8,keep=0.5", "streaming_llm:budget=8,recent=4",
                           "ada_kv:base=", "snapkv:base=knorm", "kivi:,bits=2", "snapkv:budget=99999999999999999999"}) {
    INFO(text);
    CHECK_THROWS_AS(AnyPolicy::parse(text), kvc::Error);
  }
}

TEST_CASE("to_string is a text that parses to the same") {
  for (const char* text : {"full", "kivi:bits=2", "snapkv:budget=1024,window=32 | kivi:bits=2", "h2o:normalize",
                           "ada_kv:base=h2o,keep=0.5,recent=3", "snapkv:budget=512,pyramid=20"}) {
    const std::string written = AnyPolicy::parse(text).to_string();
    CHECK(written == text);
    CHECK(AnyPolicy::parse(written).to_string() == written);
  }
}

TEST_CASE("a default budget goes to the stages that take one and were given none") {
  AnyPolicy policy = AnyPolicy::parse("snapkv | h2o:budget=77 | kivi");
  CHECK(policy.wants_budget());
  policy.set_default_budget(Budget::fraction(0.5));
  CHECK(!policy.wants_budget());
  const kvc::Stages stages = policy.stages();
  CHECK(stages[0]->budget({0, 0}, 1000, Shape) == 500);
  CHECK(stages[1]->budget({0, 0}, 1000, Shape) == 77);
  CHECK(stages[2]->budget({0, 0}, 1000, Shape) == kvc::Unlimited);
  CHECK(policy.to_string() == "snapkv:budget=0.5 | h2o:budget=77 | kivi");
}

TEST_CASE("policies without a budget want none") {
  CHECK(!AnyPolicy::parse("full").wants_budget());
  CHECK(!AnyPolicy::parse("kivi | quest").wants_budget());
  CHECK(!AnyPolicy::parse("snapkv:keep=0.5").wants_budget());
  CHECK(!AnyPolicy::parse("streaming_llm:recent=12").wants_budget());
}

TEST_CASE("a default budget under pyramid becomes the pyramid's mean") {
  AnyPolicy policy = AnyPolicy::parse("snapkv:window=16,pyramid");
  policy.set_default_budget(Budget(256));
  CHECK(only<kvc::SnapKV>(policy).budget == Budget::pyramid(256, 16));
}

TEST_CASE("every named policy describes its parameters with their defaults") {
  const std::vector<std::string> names = AnyPolicy::names();
  CHECK(std::is_sorted(names.begin(), names.end()));
  CHECK(names.size() >= 11);
  for (const std::string& name : names) {
    CHECK(AnyPolicy::describe(name).rfind(name + ": ", 0) == 0);
    CHECK(AnyPolicy::parse(name).stages().size() == 1);
  }
  CHECK(AnyPolicy::describe("kivi").find("residual=128") != std::string::npos);
  REQUIRE_THROWS_AS(AnyPolicy::describe("snap"), kvc::Error);
}

TEST_CASE("every default written out is a text that parses") {
  for (const std::string& name : AnyPolicy::names())
    for (const kvc::ParameterText& parameter : AnyPolicy::parameters(name)) {
      if (parameter.fallback.empty()) continue;
      INFO(name << ':' << parameter.name << '=' << parameter.fallback);
      CHECK_NOTHROW(AnyPolicy::parse(name + ":" + parameter.name + "=" + parameter.fallback));
    }
}

TEST_CASE("a policy of one's own can be named, once") {
  AnyPolicy::add<KeepsEvery>("keeps_every", "Keeps every other token.");
  CHECK(only<KeepsEvery>(AnyPolicy::parse("keeps_every:step=3")).step == 3);
  CHECK(AnyPolicy::parse("keeps_every | kivi").stages().size() == 2);
  REQUIRE_THROWS_AS(AnyPolicy::add<KeepsEvery>("keeps_every", "Again."), kvc::Error);
  REQUIRE_THROWS_AS(AnyPolicy::add<KeepsEvery>("keeps every", "A space."), kvc::Error);
}

TEST_CASE("what was parsed composes with policies of C++") {
  const auto pipeline = AnyPolicy::parse("snapkv:window=16") | kvc::KIVI{};
  CHECK(kvc::stages_of(pipeline).size() == 2);
  CHECK(error_text([] { kvc::check_stages(kvc::stages_of(AnyPolicy::parse("kivi") | kvc::KIVI{}), Shape); }) ==
        "two quantizers in one pipeline: rows can be sealed by one of them only");
}
