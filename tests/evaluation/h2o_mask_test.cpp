#include <kvc/cache/kv_cache.hpp>

#include <algorithm>
#include <numeric>

#include "catch_shim.hpp"
#include "evaluation/h2o_mask.hpp"
#include "support/fake_head.hpp"
#include "support/random_tokens.hpp"

using evaluation::H2OMask;
using kvc::Event;
using support::FakeHead;

namespace {

const kvc::CacheShape OneQueryHead{.query_heads = 1, .kv_heads = 1, .head_dim = 8};

/// Appends tokens and tells the policy how much attention each slot received.
void pass(FakeHead<H2OMask>& head, Event event, std::size_t tokens, const std::vector<float>& sums) {
  head.append(tokens);
  REQUIRE(sums.size() == head.positions.size());
  kvc::Observation seen;
  seen.event = event;
  seen.first_new = head.positions.size() - tokens;
  seen.queries_count = tokens;
  seen.attention = {sums.data(), 1, sums.size()};
  kvc::Head<H2OMask> view = head.head(event);
  head.policy.observe(view, seen);
}

/// Positions that the next token sees, itself among them or not.
std::vector<std::size_t> seen_by_next(FakeHead<H2OMask> head) {
  head.append(1);
  kvc::Selection selection;
  selection.reset(head.positions.size());
  head.policy.select(head.head(Event::decode), {head.queries.back().data(), 1, 8}, selection);
  std::vector<std::size_t> slots;
  for (std::size_t slot = 0; slot < selection.chosen().size(); ++slot)
    if (selection.chosen()[slot]) slots.push_back(slot);
  return slots;
}

/// The authors' rule with a mask over n + 1 columns, as the specification writes it down.
struct Simulation {
  std::size_t heavy, recent;
  std::vector<double> scores;
  std::vector<bool> mask;  // of the next query

  void step(const std::vector<float>& sums) {
    scores.resize(sums.size());
    for (std::size_t i = 0; i < sums.size(); ++i) scores[i] += double(sums[i]);
    const std::size_t n = scores.size();
    mask.assign(n + 1, true);
    if (n <= heavy + recent) return;
    for (std::size_t column = 0; column < n + 1; ++column) mask[column] = column >= n + 1 - recent;
    std::vector<std::size_t> order(n - recent);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
    for (std::size_t i = 0; i < heavy; ++i) mask[order[i]] = true;
    for (std::size_t i = 0; i < n && recent != 0; ++i)
      if (!mask[i] && i < n - recent) scores[i] = 0;
  }
  std::vector<std::size_t> visible() const {
    std::vector<std::size_t> slots;
    for (std::size_t i = 0; i < mask.size(); ++i)
      if (mask[i]) slots.push_back(i);
    return slots;
  }
};

}  // namespace

TEST_CASE("H2OMask shows every token what the authors' mask shows") {
  const auto [heavy, recent] = GENERATE(table<std::size_t, std::size_t>({{4, 6}, {1, 1}, {0, 5}, {6, 0}, {3, 1}}));
  FakeHead head(H2OMask{double(heavy) / 20 + 0.01, recent ? double(recent) / 20 + 0.01 : 0}, OneQueryHead);
  Simulation expected{heavy, recent, {}, {}};
  support::Dice dice(7);
  for (std::size_t step = 0; step < 40; ++step) {
    const std::size_t tokens = step == 0 ? 20 : 1;
    std::vector<float> sums = dice.row(head.positions.size() + tokens);
    for (std::size_t slot = 0; slot < sums.size(); ++slot)  // masked tokens receive nothing
      sums[slot] = step != 0 && !expected.mask[slot] ? 0 : std::abs(sums[slot]);
    pass(head, step == 0 ? Event::prompt_end : Event::decode, tokens, sums);
    expected.step(sums);
    REQUIRE(seen_by_next(head) == expected.visible());
  }
}

TEST_CASE("H2OMask shows everything as long as the two budgets hold it") {
  FakeHead head(H2OMask{0.5, 0.5}, OneQueryHead);
  pass(head, Event::prompt_end, 4, {1, 1, 1, 1});
  CHECK(seen_by_next(head) == std::vector<std::size_t>{0, 1, 2, 3, 4});
  pass(head, Event::decode, 1, {0.1f, 0.2f, 0.3f, 0.2f, 0.2f});
  CHECK(seen_by_next(head) == std::vector<std::size_t>{1, 2, 4, 5});
}

TEST_CASE("H2OMask hides the token that leaves the recent ones for one step, heavy as it may be") {
  FakeHead head(H2OMask{0.25, 0.25}, OneQueryHead);
  pass(head, Event::prompt_end, 8, {1, 2, 3, 1, 1, 1, 9, 1});
  CHECK(seen_by_next(head) == std::vector<std::size_t>{1, 2, 7, 8});
  pass(head, Event::decode, 1, {0, 0.2f, 0.2f, 0, 0, 0, 0, 0.3f, 0.3f});
  CHECK(seen_by_next(head) == std::vector<std::size_t>{2, 6, 8, 9});
}

TEST_CASE("H2OMask takes the mass of tokens that are neither heavy nor recent") {
  FakeHead head(H2OMask{0.25, 0.25}, OneQueryHead);
  pass(head, Event::prompt_end, 8, {1, 2, 3, 1, 1, 1, 9, 1});
  std::vector<float> masses;
  for (const H2OMask::Slot& slot : head.slots) masses.push_back(slot.mass);
  CHECK(masses == std::vector<float>{0, 2, 3, 0, 0, 0, 9, 1});
}

TEST_CASE("H2OMask without recent tokens hides a token from itself") {
  FakeHead head(H2OMask{0.5, 0}, OneQueryHead);
  pass(head, Event::prompt_end, 4, {1, 3, 2, 4});
  CHECK(seen_by_next(head) == std::vector<std::size_t>{1, 3});
}

TEST_CASE("H2OMask of equal masses shows the older token") {
  FakeHead head(H2OMask{0.25, 0.25}, OneQueryHead);
  pass(head, Event::prompt_end, 8, std::vector<float>(8, 1));
  CHECK(seen_by_next(head) == std::vector<std::size_t>{0, 1, 7, 8});
}

TEST_CASE("H2OMask gives a token no mass for attention that is not a number") {
  FakeHead head(H2OMask{0.25, 0.25}, OneQueryHead);
  pass(head, Event::prompt_end, 8, {NAN, 2, 3, 1, 1, 1, 1, 1});
  CHECK(seen_by_next(head) == std::vector<std::size_t>{1, 2, 7, 8});
}

TEST_CASE("H2OMask's budgets are those of the first prompt") {
  FakeHead head(H2OMask{0.25, 0.25}, OneQueryHead);
  pass(head, Event::prompt_end, 8, std::vector<float>(8, 1));
  pass(head, Event::prompt_end, 8, std::vector<float>(16, 1));
  CHECK(head.state.heavy == 2);
  CHECK(head.state.recent == 2);
}

TEST_CASE("H2OMask masks nothing where a prompt is too short for its shares") {
  FakeHead head(H2OMask{0.1, 0.1}, OneQueryHead);
  pass(head, Event::prompt_end, 4, {1, 1, 1, 1});
  CHECK(seen_by_next(head) == std::vector<std::size_t>{0, 1, 2, 3, 4});
}

TEST_CASE("H2OMask drops no token and gives a prompt in chunks what it gives a whole one") {
  const kvc::CacheShape shape{.query_heads = 6, .kv_heads = 2, .head_dim = 16};
  const support::RandomTokens text(shape, 60, 3);
  const auto outputs = [&](std::size_t chunk) {
    kvc::KVCache cache(shape, H2OMask{0.2, 0.2});
    support::Outputs out(shape, 60);
    for (std::size_t t = 0; t < 40; t += chunk)
      cache.prefill(0, text.tokens(t, std::min(chunk, 40 - t)), out.rows(t, std::min(chunk, 40 - t)), t + chunk >= 40);
    for (std::size_t t = 40; t < 60; ++t) cache.decode(0, text.tokens(t, 1), out.rows(t, 1));
    CHECK(cache.stats().slots == 2 * 60);
    return out.values();
  };
  const std::vector<float> whole = outputs(40), parts = outputs(7);
  float worst = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) worst = std::max(worst, std::abs(whole[i] - parts[i]));
  CHECK(worst < 1e-5f);
}

TEST_CASE("H2OMask refuses shares outside [0, 1] and two of nothing") {
  CHECK_NOTHROW(H2OMask{}.validate(OneQueryHead));
  CHECK_THROWS_AS((H2OMask{-0.1, 0.5}.validate(OneQueryHead)), kvc::Error);
  CHECK_THROWS_AS((H2OMask{0.1, 1.5}.validate(OneQueryHead)), kvc::Error);
  CHECK_THROWS_AS((H2OMask{0, 0}.validate(OneQueryHead)), kvc::Error);
}
