// What follows from the parameters that a policy declares: words in texts, help, tables, {} of fmt.
#include <kvc/named/any_policy.hpp>
#include <kvc/policies/all.hpp>

#include <fstream>
#include <sstream>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

#if __has_include(<fmt/format.h>)
#if !defined(FMT_SHARED)
#define FMT_HEADER_ONLY
#endif
#include <kvc/fmt.hpp>
#define KVC_TEST_FMT
#endif

using kvc::AnyPolicy;
using kvc::Budget;
using support::error_text;

namespace {

enum class Side : std::uint8_t { left, right };
constexpr auto words_of(Side) {
  return kvc::words(kvc::word("left", Side::left), kvc::word("right", Side::right));
}

/// A fact about a model that a program may know.
struct Depths {
  std::vector<double> of_layers;
  static constexpr const char* Expected = "depths";
  static std::optional<Depths> parse(std::string_view) { return std::nullopt; }
  std::string to_string() const { return ""; }
};

/// A policy with a parameter of every kind.
struct Everything {
  Budget budget = 100;
  std::size_t window = 8;
  double share = 0.25;
  bool flag = false;
  Side side = Side::left;
  std::optional<unsigned> bits = std::nullopt;
  std::vector<unsigned> layers = {};
  std::optional<Depths> depths = std::nullopt;

  static constexpr kvc::PolicyName name{"everything", "Has a parameter of every kind."};
  static constexpr auto parameters() {
    return kvc::list(
        kvc::parameter("budget", &Everything::budget, "Slots of a head."),
        kvc::alias(
            "half", +[](Everything& policy, std::size_t half) { policy.budget = 2 * half + policy.window; },
            "Half of the slots beside the window.")
            .instead_of("budget"),
        kvc::parameter("window", &Everything::window, "Slots that stay."),
        kvc::parameter("share", &Everything::share, "A share."), kvc::parameter("flag", &Everything::flag, "A flag."),
        kvc::parameter("side", &Everything::side, "A side."), kvc::parameter("bits", &Everything::bits, "Bits."),
        kvc::parameter("layers", &Everything::layers, "Some layers."),
        kvc::parameter("depths", &Everything::depths, "The depths of the model's layers."));
  }
  void evict(kvc::Head<Everything>&, kvc::Plan&) const {}
};

Everything parsed(const std::string& text, const AnyPolicy* policy = nullptr) {
  const auto stages = (policy ? *policy : AnyPolicy::parse(text)).stages();
  return dynamic_cast<const kvc::StageOf<Everything>&>(*stages.at(0)).policy();
}

const bool Added = (AnyPolicy::add<Everything>(), true);

}  // namespace

TEST_CASE("a declared parameter is a word of policy texts, whatever the type of its member") {
  REQUIRE(Added);
  const Everything policy = parsed("everything:budget=20,window=3,share=1e-3,flag,side=right,bits=4,layers=1+5+2");
  CHECK(policy.budget == Budget(20));
  CHECK(policy.window == 3);
  CHECK(policy.share == 0.001);
  CHECK(policy.flag);
  CHECK(policy.side == Side::right);
  CHECK(policy.bits == 4u);
  CHECK(policy.layers == std::vector<unsigned>{1, 5, 2});
}

TEST_CASE("a Budget brings keep and pyramid, which spares the policy's window") {
  CHECK(parsed("everything:keep=0.5").budget == Budget::fraction(0.5));
  CHECK(parsed("everything:pyramid=5,window=10").budget == Budget::pyramid(100, 10, 5));
  CHECK(parsed("everything:pyramid,keep=0.5").budget == Budget::pyramid(Budget::fraction(0.5), 8, 20));
  CHECK(parsed("everything:pyramid,half=40").budget == Budget::pyramid(88, 8, 20));
}

TEST_CASE("a second way to say something sees the data members, wherever they stand in the text") {
  CHECK(parsed("everything:half=30").budget == Budget(68));
  CHECK(parsed("everything:half=30,window=1").budget == Budget(61));
}

TEST_CASE("two ways to say one thing exclude each other") {
  CHECK(error_text([] { parsed("everything:half=30,keep=0.5"); }) ==
        "'half' and 'keep' both set the budget of everything\n"
        "  everything:half=30,keep=0.5\n"
        "                     ^^^^^^^^");
  CHECK(error_text([] { parsed("everything:flag,flag=false"); }) ==
        "'flag' is given twice\n"
        "  everything:flag,flag=false\n"
        "                  ^^^^^^^^^^");
}

TEST_CASE("a program gives what it knows to every stage that has a parameter of that type and whose text is silent") {
  AnyPolicy policy = AnyPolicy::parse("everything | knorm");
  CHECK(policy.wants<Depths>());
  CHECK_FALSE(AnyPolicy::parse("knorm").wants<Depths>());
  policy.set_default(Depths{{0.5, 0.7}});
  CHECK_FALSE(policy.wants<Depths>());
  CHECK(parsed("", &policy).depths->of_layers == std::vector<double>{0.5, 0.7});
  policy.set_default(Budget(7));
  policy.set_default(Budget(8));
  CHECK(parsed("", &policy).budget == Budget(8));
  CHECK(policy.to_string() == "everything:budget=8 | knorm:budget=8");
}

TEST_CASE("a value in parentheses may hold what would end it") {
  const std::string path = "/no/such, file | of: heads (1)";
  CHECK(error_text([&] { AnyPolicy::parse("razor_attention:heads=(" + path + "),sinks=2"); }) ==
        path + ": cannot be opened; a head table was expected");
}

TEST_CASE("a parenthesis without its other half is pointed at") {
  CHECK(error_text([] { AnyPolicy::parse("knorm:budget=(5 | kivi"); }) ==
        "a ) is missing behind this (\n"
        "  knorm:budget=(5 | kivi\n"
        "               ^");
  CHECK(error_text([] { AnyPolicy::parse("knorm:budget=5) | kivi"); }) ==
        "a ( is missing before this )\n"
        "  knorm:budget=5) | kivi\n"
        "                ^");
}

TEST_CASE("help says what a policy does, and of each parameter the default, the meaning and what it takes") {
  CHECK(AnyPolicy::describe("everything") ==
        "everything: Has a parameter of every kind.\n"
        "  budget=100                Slots of a head. [tokens (1024) or the fraction kept (0.25)]\n"
        "  keep                      The share of the tokens that is kept, instead of a number of slots. [a number in "
        "(0, "
        "1]]\n"
        "  half                      Half of the slots beside the window. [a whole number]\n"
        "  window=8                  Slots that stay. [a whole number]\n"
        "  share=0.25                A share. [a number]\n"
        "  flag=false                A flag. [true or false]\n"
        "  side=left                 A side. [left | right]\n"
        "  bits                      Bits. [a whole number]\n"
        "  layers                    Some layers. [a whole number]\n"
        "  depths                    The depths of the model's layers. [depths]\n"
        "  pyramid                   The budget is the mean of budgets that fall over the layers (PyramidKV); the "
        "value is "
        "beta. [a number of at least 1, 20 if left out]\n");
}

TEST_CASE("the documentation has the table of every policy of the library") {
  std::ifstream file(KVC_TEST_DATA "/../../docs/policies.md");
  std::stringstream text;
  text << file.rdbuf();
  REQUIRE(!text.str().empty());
  for (const std::string& name : AnyPolicy::names()) {
    if (name == "everything" || name == "keeps_every" || name == "choir") continue;  // of these tests
    INFO(name << ": compare --parameters prints the tables of docs/policies.md");
    CHECK(text.str().find(AnyPolicy::markdown(name)) != std::string::npos);
  }
}

#if defined(KVC_TEST_FMT)
TEST_CASE("{} of fmt writes a policy as the text that parses to the same") {
  CHECK(fmt::format("{}", kvc::SnapKV{}) == "snapkv");
  CHECK(fmt::format("{}", kvc::SnapKV{.budget = 128, .pooling = kvc::Pooling::max} | kvc::KIVI{.key_bits = 4}) ==
        "snapkv:budget=128,pooling=max | kivi:key_bits=4");
  CHECK(fmt::format("{}", Everything{.budget = Budget::fraction(0.5), .flag = true, .layers = {3, 4}}) ==
        "everything:budget=0.5,flag=true,layers=3+4");
  CHECK(fmt::format("{:>8}", kvc::Reduce::mean) == "    mean");
}
#endif
