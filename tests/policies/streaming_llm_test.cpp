#include <kvc/policies/streaming_llm.hpp>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using kvc::Event;
using kvc::StreamingLLM;
using support::FakeHead;
using support::joined;
using support::positions_between;

TEST_CASE("StreamingLLM keeps the sinks and the newest tokens after every pass") {
  FakeHead head(StreamingLLM{.budget = 20, .sinks = 4});
  head.pass(Event::prompt_end, 50);
  CHECK(head.positions == joined(positions_between(0, 4), positions_between(34, 50)));
  head.pass(Event::decode, 1);
  CHECK(head.positions == joined(positions_between(0, 4), positions_between(35, 51)));
}

TEST_CASE("StreamingLLM leaves up to sinks + recent tokens as they are") {
  FakeHead head(StreamingLLM{.budget = 20, .sinks = 4});
  head.pass(Event::prompt_end, 20);
  CHECK(head.positions == positions_between(0, 20));
}

TEST_CASE("StreamingLLM lets a prompt see all of itself, whatever its chunks") {
  FakeHead head(StreamingLLM{.budget = 20, .sinks = 4});
  head.pass(Event::prompt_chunk, 30);
  CHECK(head.positions == positions_between(0, 30));
  head.pass(Event::prompt_end, 20);
  CHECK(head.positions == joined(positions_between(0, 4), positions_between(34, 50)));
}

TEST_CASE("StreamingLLM without sinks is a sliding window, without recent tokens only sinks") {
  FakeHead window(StreamingLLM{.budget = 6, .sinks = 0}), sinks(StreamingLLM{.budget = 6, .sinks = 6});
  window.pass(Event::prompt_end, 30);
  sinks.pass(Event::prompt_end, 30);
  CHECK(window.positions == positions_between(24, 30));
  CHECK(sinks.positions == positions_between(0, 6));
}

TEST_CASE("StreamingLLM makes room for announced tokens as the authors' evict_for_space does") {
  FakeHead head(StreamingLLM{.budget = 20, .sinks = 4, .when = kvc::When::make_room});
  head.pass(Event::prompt_end, 18);
  head.pass(Event::decode, 1);
  kvc::Head<StreamingLLM> view = head.head(Event::make_room);
  SECTION("nothing is evicted while they fit") {
    view.incoming = 1;
    head.apply(head.plan(view));
    CHECK(head.positions == positions_between(0, 19));
  }
  SECTION("the window shrinks by as many as come") {
    view.incoming = 6;
    head.apply(head.plan(view));
    CHECK(head.positions == joined(positions_between(0, 4), positions_between(9, 19)));
  }
  SECTION("more than the window leaves only the sinks") {
    view.incoming = 100;
    head.apply(head.plan(view));
    CHECK(head.positions == positions_between(0, 4));
  }
}

TEST_CASE("StreamingLLM told to wait for announcements evicts nothing by itself") {
  FakeHead head(StreamingLLM{.budget = 20, .sinks = 4, .when = kvc::When::make_room});
  head.pass(Event::prompt_end, 30);
  head.pass(Event::decode, 1);
  CHECK(head.positions == positions_between(0, 31));
}

TEST_CASE("StreamingLLM with a fraction keeps that share of the tokens seen, but never fewer than the sinks") {
  FakeHead head(StreamingLLM{.budget = kvc::Budget::fraction(0.25), .sinks = 4});
  SECTION("a long prompt") {
    head.pass(Event::prompt_end, 40);
    CHECK(head.positions == joined(positions_between(0, 4), positions_between(34, 40)));
  }
  SECTION("a short prompt") {
    head.pass(Event::prompt_end, 8);
    CHECK(head.positions == positions_between(0, 4));
  }
}

TEST_CASE("StreamingLLM refuses a budget below its sinks") {
  const kvc::CacheShape shape{};
  CHECK(support::error_text([&] { StreamingLLM{.budget = 3, .sinks = 4}.validate(shape); }) ==
        "StreamingLLM: sinks (4) must not exceed the budget (3)");
  CHECK(support::error_text([&] { StreamingLLM{.budget = 0, .sinks = 0}.validate(shape); }) != "none");
  CHECK(support::error_text([&] { StreamingLLM{}.validate(shape); }) == "none");
}

TEST_CASE("StreamingLLM keeps the same slots in every head") {
  STATIC_REQUIRE(kvc::equal_slots<StreamingLLM> == kvc::EqualSlots::cache);
}
