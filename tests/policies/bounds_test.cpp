// Parameters from outside, as large or small as their types allow, are refused or work: no sum of them wraps around.
#include <kvc/policies/all.hpp>

#include <limits>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using namespace kvc;
using support::error_text;

namespace {

constexpr std::size_t Endless = std::numeric_limits<std::size_t>::max();
const CacheShape Shape{.layers = 4, .query_heads = 4, .kv_heads = 2, .head_dim = 64};

template <class P>
std::string complaint(const P& policy) {
  return error_text([&] { policy.validate(Shape); });
}

std::string must_lie(const char* what, const char* least) {
  return std::string(what) + " must lie between " + least + " and 2147483647, got 18446744073709551615";
}

}  // namespace

TEST_CASE("numbers of tokens beyond any cache are refused, with the parameter's name") {
  CHECK(complaint(SnapKV{.window = Endless}) == must_lie("SnapKV: window", "1"));
  CHECK(complaint(SnapKV{.kernel = Endless}) == must_lie("SnapKV: kernel", "1"));
  CHECK(complaint(H2O{.recent = Endless}) == must_lie("H2O: recent", "0"));
  CHECK(complaint(StreamingLLM{.sinks = Endless}) == must_lie("StreamingLLM: sinks", "0"));
  CHECK(complaint(ExternalScores{.recent = Endless}) == must_lie("ExternalScores: recent", "0"));
  CHECK(complaint(RazorAttention{.heads = HeadTable{}, .sinks = Endless}) == must_lie("RazorAttention: sinks", "0"));
  CHECK(complaint(RazorAttention{.heads = HeadTable{}, .local = Endless}) == must_lie("RazorAttention: local", "1"));
  CHECK(complaint(Quest{.page = Endless}) == must_lie("Quest: page", "1"));
  CHECK(complaint(KIVI{.group = Endless, .residual = Endless}) == must_lie("KIVI: group", "1"));
  CHECK(complaint(KIVI{.residual = Endless}) == must_lie("KIVI: residual", "1"));
  CHECK(complaint(KIVI{.sinks = Endless}) == must_lie("KIVI: sinks", "0"));
}

TEST_CASE("a pair of layers whose upper one would be the layer after the largest number is refused") {
  CHECK(complaint(MiniCache{.chosen = {{Endless, 0}}}) ==
        "MiniCache: pair 18446744073709551615-0 is not two adjacent layers, the lower one first");
  CHECK(complaint(MiniCache{.chosen = {{Endless - 1, Endless}}}) ==
        "MiniCache: pair 18446744073709551614-18446744073709551615 is beyond the model's last layer, 3");
}

TEST_CASE("pages as large as the largest number of tokens hold every slot") {
  support::FakeHead<Quest> head({.page = MostTokens, .dense_layers = 0});
  head.append(40);
  Head<Quest> view = head.head(Event::decode);
  head.policy.index(view, 0);
  Selection selection;
  selection.reset(40);
  head.policy.select(view, {head.queries.back().data(), 1, 8}, selection);
  CHECK(std::count(selection.chosen().begin(), selection.chosen().end(), 1) == 40);
}

TEST_CASE("an announcement of more tokens than there are numbers leaves the sinks of StreamingLLM") {
  support::FakeHead<StreamingLLM> head({.budget = 20, .sinks = 4});
  head.append(10);
  Head<StreamingLLM> view = head.head(Event::make_room);
  view.incoming = Endless;
  Plan plan(view);
  head.policy.evict(view, plan);
  CHECK(plan.kept_count() == 4);
}

TEST_CASE("H2O without recent tokens is refused where it would keep its first tokens for ever") {
  CHECK(complaint(H2O{.budget = 16, .recent = 0}) ==
        "H2O: recent = 0 would evict every new token at once; give recent, normalize or when = prompt_end");
  CHECK(complaint(H2O{.budget = 16, .recent = 0, .normalize = true}) == "none");
  CHECK(complaint(H2O{.budget = 16, .recent = 0, .when = When::prompt_end}) == "none");
}

TEST_CASE("H2O with a budget of one slot keeps the newest token") {
  support::FakeHead<H2O> head({.budget = 1});
  for (int step = 0; step < 3; ++step) {
    head.append(1);
    head.observe(Event::decode, 1);
    head.apply(head.plan(Event::decode));
    CHECK(head.positions == std::vector<Position>{step});
  }
}

TEST_CASE("a budget is made of numbers, not of a yes or no") {
  CHECK(!std::is_convertible_v<bool, Budget>);
  CHECK(!std::is_constructible_v<Budget, bool>);
  CHECK(std::is_convertible_v<int, Budget>);
}
