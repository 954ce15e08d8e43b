#include "evaluation/json.hpp"

#include <limits>

#include "catch_shim.hpp"
#include "kvc/error.hpp"

using evaluation::Json;
using evaluation::quoted;

TEST_CASE("JSON strings escape quotes, backslashes and control characters") {
  CHECK(quoted("a \"b\" \\ c") == R"("a \"b\" \\ c")");
  CHECK(quoted("line\nnext\ttab") == R"("line\nnext\u0009tab")");
  CHECK(quoted(std::string_view("\0", 1)) == R"("\u0000")");
}

TEST_CASE("JSON strings keep UTF-8 and replace bytes that are none") {
  CHECK(quoted("héllo 漢 😀") == "\"héllo 漢 😀\"");
  CHECK(quoted("a\xFF") == R"("a\ufffd")");
  CHECK(quoted("\xE6\xBC") == R"("\ufffd\ufffd")");  // a cut sequence
  CHECK(quoted("\xC0\xAF") == R"("\ufffd\ufffd")");  // an overlong one
}

TEST_CASE("what is written as a JSON string is read back") {
  const std::string text = "C:\\a \"quoted\"\npath \x01 é";
  CHECK(Json::parse(quoted(text)).text() == text);
}

TEST_CASE("numbers that JSON cannot say are null") {
  CHECK(evaluation::json_number(0.25) == "0.25");
  CHECK(evaluation::json_number(std::numeric_limits<double>::quiet_NaN()) == "null");
  CHECK(evaluation::json_number(std::numeric_limits<double>::infinity()) == "null");
}

TEST_CASE("JSON documents are read with their nesting") {
  const Json json = Json::parse(R"( {"a": [1, -2.5e1, true, null], "b": {"c": "\u00e9\ud83d\ude00"}} )");
  REQUIRE(json["a"].array().size() == 4);
  CHECK(json["a"].array()[1].number() == -25);
  CHECK(json["b"]["c"].text() == "é😀");
  CHECK(json.has("a"));
  CHECK_FALSE(json.has("c"));
}

TEST_CASE("a list of token ids must hold whole numbers") {
  CHECK(Json::parse("[0, 7, 49151]").integers() == std::vector<int>{0, 7, 49151});
  CHECK_THROWS_AS(Json::parse("[0.5]").integers(), kvc::Error);
  CHECK_THROWS_AS(Json::parse("[1e300]").integers(), kvc::Error);
  CHECK_THROWS_AS(Json::parse("[\"1\"]").integers(), kvc::Error);
}

TEST_CASE("damaged JSON is refused") {
  const std::string damaged = GENERATE(as<std::string>(), "", "{", "[1,", "[1 2]", "{\"a\" 1}", "\"open", "\"\\x\"",
                                       "\"\\ud800\"", "tru", "[1] 2", "{1: 2}", "nan", std::string(100000, '['));
  CAPTURE(damaged.substr(0, 40));
  CHECK_THROWS_AS(Json::parse(damaged), kvc::Error);
}
