#include "evaluation/statistics.hpp"

#include <cmath>

#include "catch_shim.hpp"

using namespace evaluation;

TEST_CASE("a mean has the standard error of its repetitions") {
  const double values[] = {1, 2, 3, 6};
  const Mean mean = mean_of(values).value();
  CHECK(mean.value == 3);
  CHECK(std::abs(mean.error.value() - std::sqrt(14.0 / 3 / 4)) < 1e-12);
}

TEST_CASE("one value has a mean but no error, and no value has none") {
  const double one[] = {2};
  CHECK(mean_of(one).value().value == 2);
  CHECK_FALSE(mean_of(one).value().error);
  CHECK_FALSE(mean_of({}));
}

TEST_CASE("the median is the middle of the values, in whatever order") {
  CHECK(median({5, 1, 3}) == 3);
  CHECK(median({4, 1, 3, 2}) == 3);
}
