#include <kvc/policies/quest.hpp>

#include <algorithm>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using kvc::Event;
using kvc::Quest;
using support::FakeHead;

namespace {

constexpr kvc::HeadId Deep{5, 0};  // a layer that is not dense
const kvc::CacheShape Shape{.layers = 8, .query_heads = 2, .kv_heads = 1, .head_dim = 8};

void index(FakeHead<Quest>& head, std::size_t from) {
  kvc::Head<Quest> view = head.head(Event::decode);
  head.policy.index(view, from);
}

/// The slots that the newest query group attends to.
std::vector<std::uint8_t> selected(FakeHead<Quest>& head, kvc::Selection& selection) {
  selection.reset(head.positions.size());
  head.policy.select(head.head(Event::decode), {head.queries.back().data(), 2, 8}, selection);
  return {selection.chosen().begin(), selection.chosen().end()};
}
std::vector<std::uint8_t> selected(FakeHead<Quest>& head) {
  kvc::Selection selection;
  return selected(head, selection);
}

float dot(const float* a, const std::vector<float>& b) {
  float sum = 0;
  for (std::size_t c = 0; c < b.size(); ++c) sum += a[c] * b[c];
  return sum;
}

/// The page's bound, straight from the definition.
float bound(const FakeHead<Quest>& head, std::size_t page, std::size_t member) {
  float sum = 0;
  const std::size_t begin = page * head.policy.page, end = std::min(head.positions.size(), begin + head.policy.page);
  for (std::size_t c = 0; c < 8; ++c) {
    float best = -INFINITY;
    for (std::size_t slot = begin; slot < end; ++slot)
      best = std::max(best, head.queries.back()[member * 8 + c] * head.stored_keys[slot][c]);
    sum += best;
  }
  return sum;
}

}  // namespace

TEST_CASE("Quest's bound is never below the largest logit of a page") {
  FakeHead head(Quest{.page = 4}, Shape, Deep);
  head.append(50);
  for (std::size_t slot = 0; slot < 50; ++slot)
    for (std::size_t g = 0; g < 2; ++g)
      CHECK(bound(head, slot / 4, g) >= dot(head.queries.back().data() + g * 8, head.stored_keys[slot]) - 1e-5f);
}

TEST_CASE("Quest attends to the pages of the highest bounds and to the last page") {
  FakeHead head(Quest{.tokens = 16, .page = 4}, Shape, Deep);
  head.append(50);  // 13 pages, the last with two tokens
  index(head, 0);

  std::vector<std::pair<float, std::size_t>> pages;
  for (std::size_t p = 0; p < 12; ++p) pages.push_back({std::max(bound(head, p, 0), bound(head, p, 1)), p});
  std::sort(pages.begin(), pages.end(), std::greater<>());
  std::vector<std::uint8_t> expected(50);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t slot = 0; slot < 4; ++slot) expected[pages[i].second * 4 + slot] = 1;
  expected[48] = expected[49] = 1;
  CHECK(selected(head) == expected);
}

TEST_CASE("Quest attends to at least three pages") {
  FakeHead head(Quest{.tokens = 1, .page = 4}, Shape, Deep);
  head.append(40);
  index(head, 0);
  const std::vector<std::uint8_t> chosen = selected(head);
  CHECK(std::count(chosen.begin(), chosen.end(), 1) == 12);
}

TEST_CASE("Quest attends to everything in its dense layers and while everything fits") {
  const std::vector<std::uint8_t> all(40, 1);
  FakeHead dense(Quest{.tokens = 16, .page = 4}, Shape, {1, 0}), fits(Quest{.tokens = 40, .page = 4}, Shape, Deep),
      sparse(Quest{.tokens = 16, .page = 4}, Shape, {2, 0});
  for (FakeHead<Quest>* head : {&dense, &fits, &sparse}) {
    head->append(40);
    index(*head, 0);
  }
  CHECK(selected(dense) == all);
  CHECK(selected(fits) == all);
  CHECK(selected(sparse) != all);
}

TEST_CASE("Quest prefers the older of equal pages") {
  FakeHead head(Quest{.tokens = 12, .page = 4}, Shape, Deep);
  head.append(40);
  for (std::vector<float>& key : head.stored_keys) key.assign(8, 1.0f);
  index(head, 0);
  std::vector<std::uint8_t> expected(40);
  for (const std::size_t slot : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u, 36u, 37u, 38u, 39u}) expected[slot] = 1;
  CHECK(selected(head) == expected);
}

TEST_CASE("Quest's ranges grown token by token equal those built at once") {
  FakeHead grown(Quest{.page = 4}, Shape, Deep), built(grown);
  for (std::size_t i = 0; i < 23; ++i) {
    grown.append(1);
    index(grown, i);
  }
  built.append(23);
  index(built, 0);
  CHECK(grown.state.low == built.state.low);
  CHECK(grown.state.high == built.state.high);
}

TEST_CASE("Quest's ranges follow slots that changed or went") {
  FakeHead head(Quest{.page = 4}, Shape, Deep), fresh(head);
  head.append(30);
  index(head, 0);
  kvc::Plan plan(head.head(Event::decode));
  plan.first(9);
  plan.last(12);
  head.apply(plan);
  index(head, 9);

  fresh.positions = head.positions;
  fresh.stored_keys = head.stored_keys;
  fresh.slots = head.slots;
  index(fresh, 0);
  CHECK(head.state.low == fresh.state.low);
  CHECK(head.state.high == fresh.state.high);
}

TEST_CASE("Quest can add up the bounds of a group instead of taking the largest") {
  FakeHead head(Quest{.tokens = 8, .page = 1, .reduce = kvc::Reduce::sum}, Shape, Deep);
  head.append(30);
  index(head, 0);
  std::vector<std::pair<float, std::size_t>> sums;
  for (std::size_t p = 0; p < 29; ++p) sums.push_back({bound(head, p, 0) + bound(head, p, 1), p});
  std::sort(sums.begin(), sums.end(), std::greater<>());
  std::vector<std::uint8_t> expected(30);
  for (std::size_t i = 0; i < 7; ++i) expected[sums[i].second] = 1;
  expected[29] = 1;
  CHECK(selected(head) == expected);
}

TEST_CASE("Quest's selections reuse their memory") {
  FakeHead head(Quest{.tokens = 16, .page = 4}, Shape, Deep);
  head.append(60);
  index(head, 0);
  kvc::Selection selection;
  selected(head, selection);
  const float* memory = selection.scratch(1).data();
  selected(head, selection);
  CHECK(selection.scratch(1).data() == memory);
}

TEST_CASE("Quest refuses empty pages") {
  REQUIRE_THROWS_AS(Quest{.page = 0}.validate(Shape), kvc::Error);
  REQUIRE_NOTHROW(Quest{}.validate(Shape));
}
