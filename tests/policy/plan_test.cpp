#include <kvc/policy/plan.hpp>
#include <kvc/policy/scoring.hpp>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

namespace {

struct Nobody {
  void evict(kvc::Head<Nobody>&, kvc::Plan&) const {}
};

/// A plan over `slots` slots.
struct Planned {
  explicit Planned(std::size_t slots) : head(Nobody{}) {
    head.append(slots);
    view = head.head(kvc::Event::prompt_end);
    plan.reset(view);
  }
  std::vector<std::uint8_t> chosen() const { return {plan.chosen().begin(), plan.chosen().end()}; }

  support::FakeHead<Nobody> head;
  kvc::Head<Nobody> view;
  kvc::Plan plan;
};

using Chosen = std::vector<std::uint8_t>;

}  // namespace

TEST_CASE("a plan without a choice keeps everything") {
  CHECK(Planned(5).plan.kept_count() == 5);
}

TEST_CASE("ranges add up and are clipped to the slots there are") {
  Planned planned(6);
  planned.plan.first(2);
  planned.plan.last(1);
  planned.plan.range(4, 99);
  CHECK(planned.chosen() == Chosen{1, 1, 0, 0, 1, 1});
}

TEST_CASE("top fills up to a total, the older of equal scores first, NaN last") {
  Planned planned(6);
  planned.plan.last(1);
  const float nan = std::nanf("");
  planned.plan.top(std::vector<float>{nan, 2, 2, 5, 2, 9}, 4);
  CHECK(planned.chosen() == Chosen{0, 1, 1, 1, 0, 1});
}

TEST_CASE("top takes even NaN when nothing else is left") {
  Planned planned(3);
  planned.plan.top(std::vector<float>(3, std::nanf("")), 2);
  CHECK(planned.chosen() == Chosen{1, 1, 0});
}

TEST_CASE("keep_best keeps protected slots beyond the total, and counts them in it") {
  Planned beyond(4), within(4);
  kvc::keep_best(beyond.plan, std::vector<float>{1, kvc::Protected, kvc::Protected, 2}, 1);
  kvc::keep_best(within.plan, std::vector<float>{1, kvc::Protected, 3, 2}, 2);
  CHECK(beyond.chosen() == Chosen{0, 1, 1, 0});
  CHECK(within.chosen() == Chosen{0, 1, 1, 0});
}

TEST_CASE("keep_best drops the lowest of one too many: NaN first, the newer of equals, never a protected one") {
  const float nan = std::nanf("");
  const auto dropped = [](std::vector<float> scores) {
    Planned planned(scores.size());
    kvc::keep_best(planned.plan, scores, scores.size() - 1);
    const Chosen chosen = planned.chosen();
    const auto gone = std::find(chosen.begin(), chosen.end(), 0);
    CHECK(std::count(gone, chosen.end(), 0) == (gone == chosen.end() ? 0 : 1));
    return gone - chosen.begin();
  };
  std::vector<float> long_row(100, 5);
  long_row[70] = long_row[40] = 1;
  long_row[99] = kvc::Protected;
  CHECK(dropped(long_row) == 70);
  long_row[90] = nan;
  CHECK(dropped(long_row) == 90);
  CHECK(dropped({2, 1, 1, 3}) == 2);
  CHECK(dropped({2, nan, 0, nan, 5}) == 3);
  CHECK(dropped({kvc::Protected, 7, kvc::Protected}) == 1);
  CHECK(dropped({kvc::Protected, kvc::Protected}) == 2);  // nobody
  std::vector<float> longer(1001, 5);
  longer[3] = longer[600] = 1;
  CHECK(dropped(longer) == 600);
  longer[2] = -INFINITY;
  CHECK(dropped(longer) == 2);
  longer[300] = nan;
  CHECK(dropped(longer) == 300);
}

TEST_CASE("a rewrite starts as a copy of what the slot has") {
  Planned planned(3);
  planned.plan.key(1)[0] += 1;
  REQUIRE(planned.plan.rewrites() == 1);
  const kvc::Plan::Rewrite rewrite = planned.plan.rewrite_at(0);
  CHECK(rewrite.slot == 1);
  CHECK(rewrite.key[0] == planned.head.stored_keys[1][0] + 1);
  CHECK(rewrite.key[1] == planned.head.stored_keys[1][1]);
}

TEST_CASE("A rewritten key leaves the value alone, and a rewritten value the key") {
  Planned planned(3);
  planned.plan.key(0)[0] = 1;
  planned.plan.value(2)[0] = 1;
  REQUIRE(planned.plan.rewrites() == 2);
  CHECK(planned.plan.rewrite_at(0).value.empty());
  CHECK(planned.plan.rewrite_at(1).key.empty());
  CHECK(planned.plan.rewrite_at(1).value[1] == planned.head.stored_values[2][1]);
}

TEST_CASE("Every slot of a long head is rewritten without a search, and its rewrite is found again") {
  Planned planned(5000);
  for (std::size_t slot = 0; slot < 5000; ++slot) planned.plan.value(slot)[0] = static_cast<float>(slot);
  for (std::size_t slot = 0; slot < 5000; ++slot) planned.plan.value(slot)[0] += 1;
  REQUIRE(planned.plan.rewrites() == 5000);
  CHECK(planned.plan.rewrite_at(4999).value[0] == 5000);
}

TEST_CASE("reset returns to keeping everything") {
  Planned planned(4);
  planned.plan.first(1);
  planned.plan.multiplicity(0, 3);
  planned.plan.reset(planned.view);
  CHECK(planned.plan.kept_count() == 4);
  CHECK(planned.plan.multiplicities().empty());
}
