#include "evaluation/progress.hpp"

#include "catch_shim.hpp"

using namespace std::chrono_literals;

TEST_CASE("the time that is left follows from what was done") {
  CHECK(evaluation::time_left(30s, 0.5) == " (about 30 s left)");
  CHECK(evaluation::time_left(60s, 0.25) == " (about 3 min left)");
  CHECK(evaluation::time_left(60s, 1) == " (about 0 s left)");
}
