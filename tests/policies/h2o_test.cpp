#include <kvc/policies/h2o.hpp>

#include <algorithm>
#include <map>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using kvc::Event;
using kvc::H2O;
using kvc::Position;
using support::FakeHead;
using support::positions_between;

namespace {

/// H2O with real dropping as the paper's code describes it, over masses that were already summed.
std::vector<Position> heavy_and_recent(std::map<Position, double> mass, std::size_t heavy, std::size_t recent) {
  std::vector<Position> kept, old;
  for (const auto& [position, value] : mass) old.push_back(position);
  for (std::size_t i = 0; i < recent; ++i) {
    kept.push_back(old.back());
    old.pop_back();
  }
  std::stable_sort(old.begin(), old.end(), [&](Position a, Position b) { return mass[a] > mass[b]; });
  kept.insert(kept.end(), old.begin(), old.begin() + static_cast<std::ptrdiff_t>(heavy));
  std::sort(kept.begin(), kept.end());
  return kept;
}

/// A head with given masses at the prompt's end.
FakeHead<H2O> with_masses(H2O policy, const std::vector<float>& masses) {
  FakeHead head(std::move(policy));
  head.append(masses.size());
  for (std::size_t slot = 0; slot < masses.size(); ++slot) head.slots[slot].mass = masses[slot];
  return head;
}

}  // namespace

TEST_CASE("H2O keeps the heaviest and the newest over a prompt and many steps") {
  const std::size_t group = GENERATE(1u, 3u);
  FakeHead head(H2O{.budget = 16, .recent = 10}, {.query_heads = group, .kv_heads = 1, .head_dim = 8});
  std::map<Position, double> mass;
  const auto pass = [&](Event event, std::size_t tokens) {
    head.append(tokens);
    for (std::size_t back = 0; back < tokens; ++back)
      for (std::size_t g = 0; g < group; ++g) {
        const std::vector<double> row = head.attention(back, g);
        for (std::size_t slot = 0; slot < row.size(); ++slot) mass[head.positions[slot]] += row[slot];
      }
    head.observe(event, tokens);
    head.apply(head.plan(event));
    const std::vector<Position> expected = heavy_and_recent(mass, 6, 10);
    REQUIRE(head.positions == expected);
    std::erase_if(
        mass, [&](const auto& entry) { return !std::binary_search(expected.begin(), expected.end(), entry.first); });
  };
  pass(Event::prompt_end, 40);
  for (int step = 0; step < 12; ++step) pass(Event::decode, 1);
}

TEST_CASE("H2O evicts nothing up to its budget and not between the chunks of a prompt") {
  FakeHead head(H2O{.budget = 20});
  head.pass(Event::prompt_chunk, 15);
  head.pass(Event::prompt_chunk, 15);
  CHECK(head.positions.size() == 30);
  head.pass(Event::prompt_end, 1);
  CHECK(head.positions.size() == 20);
}

TEST_CASE("H2O gives a prompt the same masses whole and in chunks") {
  FakeHead whole(H2O{.budget = 100}), chunked(H2O{.budget = 100});
  whole.pass(Event::prompt_end, 33);
  for (int i = 0; i < 4; ++i) chunked.pass(Event::prompt_chunk, 7);
  chunked.pass(Event::prompt_end, 5);
  for (std::size_t slot = 0; slot < 33; ++slot)
    CHECK(std::abs(whole.slots[slot].mass - chunked.slots[slot].mass) < 1e-5f);
}

TEST_CASE("H2O spares half of its budget for the newest tokens unless told otherwise") {
  std::vector<float> masses(30, 0.0f);
  masses[3] = masses[7] = masses[11] = masses[20] = 1;
  FakeHead<H2O> head = with_masses(H2O{.budget = 8}, masses);
  head.apply(head.plan(Event::prompt_end));
  CHECK(head.positions == std::vector<Position>{3, 7, 11, 20, 26, 27, 28, 29});
}

TEST_CASE("H2O keeps the older of equal masses, and NaN loses") {
  std::vector<float> masses(12, 1.0f);
  masses[0] = std::nanf("");
  FakeHead<H2O> head = with_masses(H2O{.budget = 5, .recent = 2}, masses);
  head.apply(head.plan(Event::prompt_end));
  CHECK(head.positions == std::vector<Position>{1, 2, 3, 10, 11});
}

TEST_CASE("H2O's newest tokens survive even where all masses are infinite or NaN") {
  const float mass = GENERATE(INFINITY, std::nanf(""));
  FakeHead<H2O> head = with_masses(H2O{.budget = 6, .recent = 4}, std::vector<float>(20, mass));
  head.apply(head.plan(Event::prompt_end));
  REQUIRE(head.positions.size() >= 4);
  CHECK(std::vector<Position>(head.positions.end() - 4, head.positions.end()) == positions_between(16, 20));
}

TEST_CASE("H2O without recent tokens may drop even the newest") {
  std::vector<float> masses(10, 1.0f);
  masses[9] = 0;
  FakeHead<H2O> head = with_masses(H2O{.budget = 9, .recent = 0}, masses);
  head.apply(head.plan(Event::decode));
  CHECK(head.positions == positions_between(0, 9));
}

TEST_CASE("H2O normalized ranks by attention per query that saw the token") {
  // The last of ten tokens was seen by one query, the first by ten.
  std::vector<float> masses{5, 1, 1, 1, 1, 1, 1, 1, 1, 0.6f};
  FakeHead<H2O> raw = with_masses(H2O{.budget = 1, .recent = 0}, masses);
  FakeHead<H2O> normalized = with_masses(H2O{.budget = 1, .recent = 0, .normalize = true}, masses);
  raw.apply(raw.plan(Event::prompt_end));
  normalized.apply(normalized.plan(Event::prompt_end));
  CHECK(raw.positions == std::vector<Position>{0});
  CHECK(normalized.positions == std::vector<Position>{9});
}

TEST_CASE("H2O reduces the masses of a group by sum, mean or maximum") {
  const auto mass_after = [](kvc::Reduce reduce) {
    FakeHead head(H2O{.budget = 8, .reduce = reduce});
    head.append(1);
    const std::vector<float> sums{0.25f, 0.75f};  // two query heads, one slot
    kvc::Head<H2O> view = head.head(Event::decode);
    kvc::Observation seen;
    seen.attention = {sums.data(), 2, 1};
    head.policy.observe(view, seen);
    return head.slots[0].mass;
  };
  CHECK(mass_after(kvc::Reduce::sum) == 1.0f);
  CHECK(mass_after(kvc::Reduce::mean) == 0.5f);
  CHECK(mass_after(kvc::Reduce::max) == 0.75f);
}

TEST_CASE("H2O once after the prompt neither evicts nor asks for attention while decoding") {
  FakeHead head(H2O{.budget = 10, .when = kvc::When::prompt_end});
  head.pass(Event::prompt_end, 20);
  head.pass(Event::decode, 1);
  CHECK(head.positions.size() == 11);
  CHECK(head.policy.needs().prompt == kvc::Feed::group_sums);
  CHECK(head.policy.needs().decode == kvc::Feed::none);
  CHECK(H2O{}.needs().decode == kvc::Feed::group_sums);
  CHECK(H2O{.reduce = kvc::Reduce::max}.needs().decode == kvc::Feed::sums);
}

TEST_CASE("H2O with a fraction below its recent tokens keeps the recent tokens") {
  FakeHead head(H2O{.budget = kvc::Budget::fraction(0.1), .recent = 5});
  head.pass(Event::prompt_end, 20);
  CHECK(head.positions == positions_between(15, 20));
}

TEST_CASE("H2O refuses a budget below its recent tokens") {
  const kvc::CacheShape shape{};
  CHECK(support::error_text([&] { H2O{.budget = 8, .recent = 9}.validate(shape); }) ==
        "H2O: recent (9) must not exceed the budget (8)");
  CHECK(support::error_text([&] { H2O{.budget = 8, .recent = 8}.validate(shape); }) == "none");
}
