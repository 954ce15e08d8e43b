// Policies inside policies, and stages for some layers only, in policy texts.
#include <kvc/named/any_policy.hpp>
#include <kvc/policies/all.hpp>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using kvc::AnyPolicy;
using kvc::Budget;
using kvc::Member;
using support::error_text;

namespace {

/// A policy with a list of policies inside it, as a fusion of scores has one.
struct Choir {
  std::vector<Member> voices = {};
  std::size_t tempo = 60;

  static constexpr kvc::PolicyName name{"choir", "Has a list of policies."};
  static constexpr auto parameters() {
    return kvc::list(kvc::parameter("voices", &Choir::voices, "The policies."),
                     kvc::parameter("tempo", &Choir::tempo, "A number."));
  }
  std::span<const Member> members() const { return voices; }
  void evict(kvc::Head<Choir>&, kvc::Plan&) const {}
};

const bool Added = (AnyPolicy::add<Choir>(), true);

template <class P>
P only(const std::string& text) {
  const kvc::Stages stages = AnyPolicy::parse(text).stages();
  REQUIRE(stages.size() == 1);
  return dynamic_cast<const kvc::StageOf<P>&>(*stages[0]).policy();
}
template <class P>
P inside(const Member& member) {
  return dynamic_cast<const kvc::StageOf<P>&>(member.stage()).policy();
}
std::string complaint(const std::string& text) {
  return error_text([&] { AnyPolicy::parse(text); });
}

}  // namespace

TEST_CASE("the value of a parameter that is a policy is the text of a stage") {
  const auto ada = only<kvc::AdaKV>("ada_kv:base=(snapkv:window=16,budget=9),budget=0.25");
  CHECK(ada.budget == Budget::fraction(0.25));
  CHECK(inside<kvc::SnapKV>(ada.base).window == 16);
  CHECK(inside<kvc::SnapKV>(ada.base).budget == Budget(9));
  const auto outer = only<kvc::AdaKV>("ada_kv:base=(ada_kv:base=(knorm:budget=5),floor_alpha=0.5)");
  CHECK(inside<kvc::Knorm>(inside<kvc::AdaKV>(outer.base).base).budget == Budget(5));
}

TEST_CASE("policies in a list are joined by +") {
  REQUIRE(Added);
  const auto choir = only<Choir>("choir:tempo=90,voices=(snapkv:window=8) + knorm+(h2o:recent=2)");
  REQUIRE(choir.voices.size() == 3);
  CHECK(inside<kvc::SnapKV>(choir.voices[0]).window == 8);
  CHECK(inside<kvc::Knorm>(choir.voices[1]).budget == Budget(1024));
  CHECK(inside<kvc::H2O>(choir.voices[2]).recent == 2u);
  CHECK(choir.tempo == 90);
}

TEST_CASE("words that a policy does not know belong to the one policy inside it") {
  const auto ada = only<kvc::AdaKV>("ada_kv:recent=3,base=h2o,floor_alpha=0.1,normalize");
  CHECK(inside<kvc::H2O>(ada.base).recent == 3u);
  CHECK(inside<kvc::H2O>(ada.base).normalize);
  CHECK(ada.floor_alpha == 0.1);
  CHECK(complaint("choir:voices=knorm,window=8").find("choir has no parameter 'window'") == 0);
}

TEST_CASE("a pyramid spares the window of the policy inside") {
  CHECK(only<kvc::AdaKV>("ada_kv:budget=100,window=16,pyramid=10").budget == Budget::pyramid(100, 16, 10));
  CHECK(only<kvc::AdaKV>("ada_kv:base=knorm,budget=100,pyramid=10").budget == Budget::pyramid(100, 0, 10));
}

TEST_CASE("what is wrong inside a policy inside a policy is pointed at where it stands") {
  CHECK(complaint("kivi | ada_kv:base=(snapkv:windw=16),budget=8") ==
        "snapkv has no parameter 'windw'; did you mean 'window'? there are: budget, keep, window, kernel, pooling, "
        "reduce, order, pyramid\n"
        "  kivi | ada_kv:base=(snapkv:windw=16),budget=8\n"
        "                             ^^^^^");
  CHECK(complaint("choir:voices=(snapkv:window=8)+(knorm:budget=x)") ==
        "'budget' of knorm takes tokens (1024) or the fraction kept (0.25), got 'x'\n"
        "  choir:voices=(snapkv:window=8)+(knorm:budget=x)\n"
        "                                               ^");
  CHECK(complaint("ada_kv:base=snapvk").find("unknown policy 'snapvk'; did you mean 'snapkv'?") == 0);
  CHECK(complaint("ada_kv:base=h2o,windw=16").find("did you mean") == std::string::npos);
  CHECK(complaint("ada_kv:base=h2o,recnt=16").find("ada_kv has no parameter 'recnt'; did you mean 'recent'?") == 0);
}

TEST_CASE("a policy behind a comma, where policies are listed, is told that + joins them") {
  CHECK(complaint("choir:voices=knorm,snapkv") ==
        "choir has no parameter 'snapkv'; policies are joined by +, as in voices=knorm+snapkv\n"
        "  choir:voices=knorm,snapkv\n"
        "                     ^^^^^^");
  CHECK(complaint("choir:voices=knorm,h2o:recent=2").find("; policies are joined by +, as in voices=knorm+h2o\n") !=
        std::string::npos);
  CHECK(complaint("choir:voices=knorm,tempo=90").find("joined by") == std::string::npos);
}

TEST_CASE("a word that stands for several stages gives them all, on the layers that it is for") {
  const auto count = [](const char* text) { return AnyPolicy::parse(text).stages().size(); };
  if (error_text([] { AnyPolicy::parse("compact"); }) != "none") return;  // built without Eigen
  CHECK(count("compact") == 1);
  CHECK(count("compact:budget=64") == 2);
  CHECK(count("compact:budget=64,batch=0") == 1);
  CHECK(count("[1-2] compact:budget=64 | full") == 3);
  CHECK_FALSE(AnyPolicy::parse("[1-2] compact:budget=64").stages()[1]->works_on(0));
}

TEST_CASE("a list with a gap and a policy without a name are refused") {
  for (const char* text :
       {"choir:voices=", "choir:voices", "choir:voices=knorm+", "choir:voices=(knorm)+()", "ada_kv:base=()",
        "ada_kv:base=(knorm)x", "ada_kv:base=knorm,base=h2o", "ada_kv:base=(knorm | h2o)"}) {
    INFO(text);
    CHECK_THROWS_AS(AnyPolicy::parse(text), kvc::Error);
  }
}

TEST_CASE("policies nested too deep are refused, not followed") {
  std::string text = "knorm";
  for (int depth = 0; depth < 1000; ++depth) text = "ada_kv:base=(" + text + ")";
  CHECK(complaint(text).find("policies inside policies are nested too deep") == 0);
}

TEST_CASE("a stage may be limited to a layer, or to a range of layers") {
  const kvc::Stages stages =
      AnyPolicy::parse("[0-3] streaming_llm | [4-] snapkv:budget=0.25 | [-1] knorm | [ 7 ] full | kivi:bits=2")
          .stages();
  REQUIRE(stages.size() == 5);
  const auto layers = [&](std::size_t stage) {
    std::string text;
    for (std::size_t layer = 0; layer < 9; ++layer) text += stages[stage]->works_on(layer) ? '1' : '0';
    return text;
  };
  CHECK(layers(0) == "111100000");
  CHECK(layers(1) == "000011111");
  CHECK(layers(2) == "110000000");
  CHECK(layers(3) == "000000010");
  CHECK(layers(4) == "111111111");
}

TEST_CASE("layers that are none are pointed at") {
  CHECK(complaint("kivi | [3-1] full") ==
        "layers are a number or a range, as in [5], [0-3] or [4-]\n"
        "  kivi | [3-1] full\n"
        "         ^^^^^");
  CHECK(complaint("[0-3 full") ==
        "a ] is missing behind this [\n"
        "  [0-3 full\n"
        "  ^");
  for (const char* text : {"[] full", "[-] full", "[a] full", "[1-2-3] full", "[-1-2] full",
                           "[99999999999999999999] full", "[1]", "[1] [2] full"}) {
    INFO(text);
    CHECK_THROWS_AS(AnyPolicy::parse(text), kvc::Error);
  }
}

TEST_CASE("texts with policies inside, parentheses and layers are written as they were read") {
  for (const char* text :
       {"ada_kv:base=(snapkv:window=16),budget=0.25", "choir:voices=(snapkv:window=8)+knorm,tempo=3",
        "[0-3] streaming_llm:budget=512 | [4-] snapkv:budget=0.25 | kivi:bits=2", "ada_kv:window=16,base=snapkv"}) {
    CHECK(AnyPolicy::parse(text).to_string() == text);
    CHECK(AnyPolicy::parse(AnyPolicy::parse(text).to_string()).to_string() == text);
  }
}

TEST_CASE("a default budget is not for the policy inside, a fact about the model is") {
  AnyPolicy policy = AnyPolicy::parse("choir:voices=knorm+razor_attention");
  CHECK_FALSE(policy.wants_budget());
  CHECK(policy.wants<kvc::HeadTable>());
  policy.set_default(kvc::HeadTable(1, 1, {1}));
  policy.set_default_budget(7);
  const auto stages = policy.stages();
  const auto choir = dynamic_cast<const kvc::StageOf<Choir>&>(*stages[0]).policy();
  CHECK(inside<kvc::Knorm>(choir.voices[0]).budget == Budget(1024));
  CHECK(inside<kvc::RazorAttention>(choir.voices[1]).heads == kvc::HeadTable(1, 1, {1}));
}

TEST_CASE("a policy inside another one is written as its text") {
  CHECK(kvc::policy_text(kvc::AdaKV{.base = kvc::SnapKV{.window = 16}, .budget = 100}) ==
        "ada_kv:base=(snapkv:window=16),budget=100");
  CHECK(kvc::policy_text(kvc::AdaKV{.base = kvc::Knorm{}}) == "ada_kv:base=knorm");
  CHECK(kvc::policy_text(Choir{.voices = {kvc::Knorm{.budget = 3}, kvc::H2O{}}}) ==
        "choir:voices=(knorm:budget=3)+h2o");
}
