#include <kvc/policies/razor_attention.hpp>

#include <cmath>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using kvc::Event;
using kvc::HeadTable;
using kvc::RazorAttention;
using support::FakeHead;
using support::joined;
using support::positions_between;
using Compensation = RazorAttention::Compensation;

namespace {

/// The paper's rule with a window of `local` tokens, in every head.
RazorAttention paper(std::size_t local, std::size_t divisor = 5) {
  return {.heads = HeadTable{}, .local = local, .divisor = divisor};
}

/// Every token that a head saw, to compute what went again from the beginning.
struct Text {
  std::vector<std::vector<float>> keys, values;

  void note(const FakeHead<RazorAttention>& head, std::size_t tokens) {
    keys.insert(keys.end(), head.stored_keys.end() - std::ptrdiff_t(tokens), head.stored_keys.end());
    values.insert(values.end(), head.stored_values.end() - std::ptrdiff_t(tokens), head.stored_values.end());
  }
};

/// Appends, notes, evicts.
void pass(FakeHead<RazorAttention>& head, Text& text, Event event, std::size_t tokens) {
  head.append(tokens);
  text.note(head, tokens);
  head.apply(head.plan(event));
}

/// The largest difference between `row` and the mean of rows [first, end).
double difference_from_mean(const std::vector<float>& row, const std::vector<std::vector<float>>& rows,
                            std::size_t first, std::size_t end) {
  double worst = 0;
  for (std::size_t c = 0; c < row.size(); ++c) {
    double sum = 0;
    for (std::size_t token = first; token < end; ++token) sum += double(rows[token][c]);
    worst = std::max(worst, std::abs(double(row[c]) - sum / double(end - first)));
  }
  return worst;
}

/// Checks slot 4 against tokens [4, end): their mean, standing for all of them.
void check_compensation(const FakeHead<RazorAttention>& head, const Text& text, std::size_t end) {
  REQUIRE(head.positions.size() > 5);
  CHECK(head.positions[5] == static_cast<kvc::Position>(end));
  REQUIRE(head.multiplicity.size() == head.positions.size());
  CHECK(head.multiplicity[4] == static_cast<float>(end - 4));
  CHECK(head.multiplicity[3] == 1);
  CHECK(head.multiplicity[5] == 1);
  CHECK(difference_from_mean(head.stored_keys[4], text.keys, 4, end) < 2e-7);
  CHECK(difference_from_mean(head.stored_values[4], text.values, 4, end) < 2e-7);
}

}  // namespace

TEST_CASE("RazorAttention keeps the sinks, a compensation token behind them, and the newest tokens") {
  FakeHead head(paper(20));
  head.pass(Event::prompt_end, 60);
  CHECK(head.positions == joined(positions_between(0, 5), positions_between(40, 60)));
}

TEST_CASE("RazorAttention's window is max(local, floor(seen / divisor))") {
  FakeHead head(paper(20));
  SECTION("local while the text is short") {
    head.pass(Event::prompt_end, 104);
    CHECK(head.positions.back() - head.positions[5] + 1 == 20);
  }
  SECTION("a share of a long text") {
    head.pass(Event::prompt_end, 209);
    CHECK(head.positions.back() - head.positions[5] + 1 == 41);
    head.pass(Event::decode, 1);
    CHECK(head.positions.back() - head.positions[5] + 1 == 42);
  }
  SECTION("local alone with divisor 0") {
    head.policy.divisor = 0;
    head.pass(Event::prompt_end, 209);
    CHECK(head.positions.back() - head.positions[5] + 1 == 20);
  }
}

TEST_CASE("RazorAttention's compensation token is the mean of what went and stands for as many tokens") {
  FakeHead head(paper(20));
  Text text;
  pass(head, text, Event::prompt_end, 60);
  check_compensation(head, text, 40);
}

TEST_CASE("RazorAttention's compensation token stays what recomputation gives over hundreds of steps") {
  FakeHead head(paper(20, 10));
  Text text;
  pass(head, text, Event::prompt_end, 60);
  for (std::size_t seen = 61; seen <= 700; ++seen) {
    pass(head, text, Event::decode, 1);
    INFO("seen " << seen);
    check_compensation(head, text, seen - std::max<std::size_t>(20, seen / 10));
  }
}

TEST_CASE("RazorAttention without a prompt begins to compress while decoding") {
  FakeHead head(paper(20, 0));
  Text text;
  for (std::size_t seen = 1; seen <= 200; ++seen) pass(head, text, Event::decode, 1);
  check_compensation(head, text, 180);
}

TEST_CASE("RazorAttention leaves a single token beyond the window as it is: it would be its own mean") {
  FakeHead head(paper(20));
  head.pass(Event::prompt_end, 25);
  CHECK(head.positions == positions_between(0, 25));
  CHECK(head.multiplicity.empty());
  head.pass(Event::decode, 1);
  CHECK(head.positions == joined(positions_between(0, 5), positions_between(6, 26)));
  CHECK(head.multiplicity[4] == 2);
}

TEST_CASE("RazorAttention keeps every token of a retrieval head") {
  const kvc::CacheShape shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 8};
  const RazorAttention policy{.heads = HeadTable(2, 2, {0, 0, 1, 0}), .local = 20};
  FakeHead whole(policy, shape, {1, 0}), cut(policy, shape, {1, 1});
  for (FakeHead<RazorAttention>* head : {&whole, &cut}) head->pass(Event::prompt_end, 60);
  CHECK(whole.positions == positions_between(0, 60));
  CHECK(cut.positions.size() == 25);
}

TEST_CASE("RazorAttention acts at a prompt's end, not between its chunks") {
  FakeHead chunked(paper(20)), whole(paper(20));
  chunked.pass(Event::prompt_chunk, 45);
  CHECK(chunked.positions == positions_between(0, 45));
  chunked.pass(Event::prompt_end, 15);
  whole.pass(Event::prompt_end, 60);
  CHECK(chunked.positions == whole.positions);
  CHECK(chunked.stored_keys == whole.stored_keys);
  CHECK(chunked.stored_values == whole.stored_values);
  CHECK(chunked.multiplicity == whole.multiplicity);
}

TEST_CASE("RazorAttention merges what a second prompt displaces into the same compensation token") {
  FakeHead head(paper(20, 0));
  Text text;
  pass(head, text, Event::prompt_end, 60);
  pass(head, text, Event::decode, 1);
  pass(head, text, Event::prompt_end, 90);
  check_compensation(head, text, 131);
}

TEST_CASE("RazorAttention with a budget in tokens holds that many slots, compensation token included") {
  FakeHead head(RazorAttention{.heads = HeadTable{}, .budget = 32});
  Text text;
  pass(head, text, Event::prompt_end, 100);
  CHECK(head.positions.size() == 32);
  check_compensation(head, text, 73);
  pass(head, text, Event::decode, 1);
  CHECK(head.positions.size() == 32);
}

TEST_CASE("RazorAttention with a fraction keeps that share of the whole cache, retrieval heads included") {
  const kvc::CacheShape shape{.layers = 1, .query_heads = 4, .kv_heads = 4, .head_dim = 8};
  const RazorAttention policy{.heads = HeadTable(1, 4, {0, 1, 0, 0}), .budget = kvc::Budget::fraction(0.5)};
  std::size_t slots = 0;
  for (std::uint32_t h = 0; h < 4; ++h) {
    FakeHead head(policy, shape, {0, h});
    head.pass(Event::prompt_end, 300);
    slots += head.positions.size();
  }
  CHECK(slots == 600);  // 300 in the retrieval head, 100 in each of the others
}

TEST_CASE("RazorAttention with a fraction below the retrieval heads' share keeps what always stays") {
  const kvc::CacheShape shape{.layers = 1, .query_heads = 2, .kv_heads = 2, .head_dim = 8};
  FakeHead head(RazorAttention{.heads = HeadTable(1, 2, {1, 0}), .budget = kvc::Budget::fraction(0.25)}, shape, {0, 1});
  head.pass(Event::prompt_end, 100);
  CHECK(head.positions == joined(positions_between(0, 5), {99}));
}

TEST_CASE("RazorAttention in Huawei's form compresses at a prompt's end to a fixed capacity, the mean with weight 1") {
  RazorAttention policy{
      .heads = HeadTable{}, .budget = 40, .compensation = Compensation::unweighted, .when = kvc::When::prompt_end};
  Text text;
  SECTION("with the virtual token") {
    FakeHead head(policy);
    pass(head, text, Event::prompt_end, 120);
    CHECK(head.positions == joined(positions_between(0, 5), positions_between(85, 120)));
    CHECK(head.multiplicity.empty());
    CHECK(difference_from_mean(head.stored_keys[4], text.keys, 4, 85) < 2e-7);
    pass(head, text, Event::decode, 1);
    CHECK(head.positions.size() == 41);
    // A second prompt goes on with the same mean: 121 + 50 tokens, of which the newest 35 stay.
    pass(head, text, Event::prompt_end, 50);
    CHECK(head.positions.size() == 40);
    CHECK(difference_from_mean(head.stored_keys[4], text.keys, 4, 136) < 2e-7);
  }
  SECTION("without it") {
    policy.compensation = Compensation::none;
    FakeHead head(policy);
    pass(head, text, Event::prompt_end, 120);
    CHECK(head.positions == joined(positions_between(0, 4), positions_between(84, 120)));
    CHECK(head.stored_keys[4] == text.keys[84]);
  }
  SECTION("a prompt that fits stays untouched") {
    FakeHead head(policy);
    pass(head, text, Event::prompt_end, 40);
    CHECK(head.positions == positions_between(0, 40));
  }
}

TEST_CASE("RazorAttention starts a new mean when the old one was forgotten") {
  FakeHead head(paper(20, 0));
  Text text;
  pass(head, text, Event::prompt_end, 60);
  // What truncate() to position 4 leaves; then another text comes, with a token at the old mean's position.
  head.positions.resize(4);
  head.slots.resize(4);
  head.stored_keys.resize(4);
  head.stored_values.resize(4);
  head.multiplicity.resize(4);
  head.seen = 4;
  text.keys.resize(4);
  text.values.resize(4);
  pass(head, text, Event::prompt_end, 50);
  check_compensation(head, text, 34);
}

TEST_CASE("RazorAttention refuses to run without a table, with a foreign one, and impossible budgets") {
  const kvc::CacheShape shape{.layers = 2, .query_heads = 4, .kv_heads = 2};
  const auto complaint = [&](const RazorAttention& policy) {
    return support::error_text([&] { policy.validate(shape); });
  };
  CHECK(complaint({}) ==
        "RazorAttention: heads: no table of the model's retrieval heads; `analyze heads --out FILE` makes one, and "
        "heads=none compresses every head");
  CHECK(complaint({.heads = HeadTable(3, 2, std::vector<std::uint8_t>(6))}) ==
        "RazorAttention: heads: the head table is of a model with 3 layers of 2 KV heads, but the cache has 2 layers "
        "of 2");
  CHECK(complaint({.heads = HeadTable{}, .budget = 5}) ==
        "RazorAttention: sinks, compensation token and the newest token (6) must not exceed the budget (5)");
  CHECK(complaint({.heads = HeadTable{}, .local = 0}) ==
        "RazorAttention: local must lie between 1 and 2147483647, got 0");
  CHECK(complaint({.heads = HeadTable{}, .budget = 5, .compensation = Compensation::none}) == "none");
  CHECK(complaint({.heads = HeadTable(2, 2, {0, 1, 0, 0})}) == "none");
}
