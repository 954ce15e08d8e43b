#include <kvc/policies/external_scores.hpp>
#include <kvc/policies/knorm.hpp>
#include <kvc/policy/pipeline.hpp>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using kvc::Event;
using kvc::ExternalScores;
using kvc::Knorm;
using kvc::Position;
using support::FakeHead;
using support::positions_between;

TEST_CASE("Knorm scores a token by minus the norm of its key") {
  FakeHead head(Knorm{.budget = 2});
  head.append(3);
  head.stored_keys = {{3, 4, 0, 0, 0, 0, 0, 0}, {0, 0, 1, 0, 0, 0, 0, 0}, {2, 2, 2, 2, 0, 0, 0, 0}};
  std::vector<float> scores(3);
  head.policy.score(head.head(Event::prompt_end), scores);
  CHECK(scores == std::vector<float>{-5, -1, -4});
}

TEST_CASE("a policy that only scores keeps the best after the prompt, and no step evicts") {
  FakeHead head(Knorm{.budget = 2});
  head.append(4);
  head.stored_keys = {
      {3, 4, 0, 0, 0, 0, 0, 0}, {0, 1, 0, 0, 0, 0, 0, 0}, {2, 2, 2, 2, 0, 0, 0, 0}, {9, 0, 0, 0, 0, 0, 0, 0}};
  const kvc::Stages stages = kvc::stages_of(head.policy);
  const auto kept_after = [&](Event event) {
    kvc::Head<Knorm> view = head.head(event);
    head.score(view);
    const auto state = stages[0]->new_state();
    const kvc::StageMemory memory{nullptr, state.get()};
    const kvc::AnyHead any{view, &memory};
    kvc::Plan plan(any.view);
    stages[0]->evict(any, plan);
    return std::vector<std::uint8_t>(plan.chosen().begin(), plan.chosen().end());
  };
  CHECK(kept_after(Event::prompt_end) == std::vector<std::uint8_t>{0, 1, 1, 0});
  CHECK(kept_after(Event::decode) == std::vector<std::uint8_t>{1, 1, 1, 1});
  CHECK(kept_after(Event::prompt_chunk) == std::vector<std::uint8_t>{1, 1, 1, 1});
}

TEST_CASE("Knorm refuses a budget of nothing") {
  REQUIRE_THROWS_AS(Knorm{.budget = 0}.validate({}), kvc::Error);
  REQUIRE_NOTHROW(Knorm{.budget = 1}.validate({}));
}

namespace {

/// Feeds tokens with the engine's scores.
void feed(FakeHead<ExternalScores>& head, Event event, const std::vector<float>& scores) {
  head.append(scores.size());
  head.observe(event, scores.size(), scores);
  head.apply(head.plan(event));
}

}  // namespace

TEST_CASE("ExternalScores evicts what the engine scored lowest, after the prompt only") {
  FakeHead head(ExternalScores{.budget = 3});
  feed(head, Event::prompt_chunk, {1, 9, 2});
  CHECK(head.positions.size() == 3);
  feed(head, Event::prompt_end, {8, 3, 4});
  CHECK(head.positions == std::vector<Position>{1, 3, 5});
  feed(head, Event::decode, {0});
  CHECK(head.positions == std::vector<Position>{1, 3, 5, 6});
}

TEST_CASE("ExternalScores evicts while decoding if asked, by scores that never change") {
  FakeHead head(ExternalScores{.budget = 3, .when = kvc::When::every_pass});
  feed(head, Event::prompt_end, {1, 9, 2, 8});
  CHECK(head.positions == std::vector<Position>{1, 2, 3});
  feed(head, Event::decode, {5});
  CHECK(head.positions == std::vector<Position>{1, 3, 4});
  feed(head, Event::decode, {0});
  CHECK(head.positions == std::vector<Position>{1, 3, 4});
}

TEST_CASE("ExternalScores evicts after each chunk if asked, sparing the newest tokens") {
  FakeHead head(ExternalScores{.budget = 4, .recent = 2, .when = kvc::When::every_chunk});
  feed(head, Event::prompt_chunk, {5, 4, 9, 8, 0, 0});
  CHECK(head.positions == std::vector<Position>{2, 3, 4, 5});
}

TEST_CASE("ExternalScores keeps the older of equal scores, and NaN loses") {
  FakeHead head(ExternalScores{.budget = 2});
  feed(head, Event::prompt_end, {std::nanf(""), 1, 1, 1});
  CHECK(head.positions == std::vector<Position>{1, 2});
}

TEST_CASE("ExternalScores asks the engine for scores, and refuses a budget below its recent tokens") {
  CHECK(ExternalScores{}.needs().external_scores);
  CHECK(support::error_text([] { ExternalScores{.budget = 4, .recent = 5}.validate({}); }) ==
        "ExternalScores: recent (5) must not exceed the budget (4)");
}
