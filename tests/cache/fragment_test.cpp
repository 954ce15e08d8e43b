#include "catch_shim.hpp"

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "kvc/error.hpp"

using namespace kvc;

TEST_CASE("fragments of a text stand one behind the other") {
  const std::string owned = "owned, ";
  CHECK(joined({"literal, ", owned, std::string_view("a view of more").substr(0, 6), ""}) == "literal, owned, a view");
  CHECK(joined({}).empty());
  CHECK(joined({std::string(100000, 'x'), "y"}) == std::string(100000, 'x') + "y");
}

TEST_CASE("a text keeps its zero bytes") {
  const std::string text("a\0b", 3);
  CHECK(joined({text, "c"}) == text + "c");
}

TEST_CASE("numbers are written as std::to_string writes them") {
  constexpr auto Most = std::numeric_limits<std::uint64_t>::max();
  constexpr auto Least = std::numeric_limits<std::int64_t>::min();
  CHECK(joined({Most, " ", Least}) == std::to_string(Most) + " " + std::to_string(Least));
  CHECK(joined({std::uint8_t{200}, " ", std::int8_t{-100}}) == "200 -100");
  for (const double number : {0.0, -0.1, 65504.5, 1e-9, std::numeric_limits<double>::max(),
                              -std::numeric_limits<double>::max(), std::numeric_limits<double>::infinity()})
    CHECK(joined({number}) == std::to_string(number));
  CHECK(joined({0.1f}) == std::to_string(0.1f));
}

TEST_CASE("fail throws an Error with the joined sentence") {
  try {
    fail(ErrorCode::bad_file, {"line ", 3, ": got '", std::string("x"), "'"});
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::bad_file);
    CHECK(std::string(error.what()) == "line 3: got 'x'");
    return;
  }
  FAIL("nothing was thrown");
}
