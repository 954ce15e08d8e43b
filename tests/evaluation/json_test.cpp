#include "evaluation/json.hpp"

#include <limits>

#include "catch_shim.hpp"
#include "kvc/error.hpp"
#include "support/temporary_file.hpp"

using evaluation::Json;

namespace {

/// What is said about a file with this content when it is read as a list of token ids.
std::string complaint(const std::string& content) {
  const TemporaryFile file(content);
  try {
    evaluation::read_json(file.path(), "--windows-file",
                          [](const Json& json) { return evaluation::whole_numbers(json.at("ids")); });
  } catch (const kvc::Error& error) {
    CHECK(error.code() == kvc::ErrorCode::bad_file);
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("token ids are read from a file") {
  const TemporaryFile file(R"({"ids": [0, 7, 49151]})");
  CHECK(evaluation::read_json(file.path(), "ids", [](const Json& json) {
          return evaluation::whole_numbers(json.at("ids"));
        }) == std::vector<int>{0, 7, 49151});
}

TEST_CASE("a list of token ids must hold whole numbers that an int can hold") {
  for (const char* number : {"0.5", "1e300", "\"1\"", "null", "2147483648", "-2147483649", "18446744073709551615"}) {
    CAPTURE(number);
    CHECK(contains(complaint("{\"ids\": [" + std::string(number) + "]}"),
                   "expected whole numbers up to 2147483647, got " +
                       std::string(number == std::string("1e300") ? "1e+300" : number)));
  }
}

TEST_CASE("complaints about JSON name the option, and say in words what is wrong") {
  CHECK(contains(complaint("{}"), "--windows-file: "));
  CHECK(contains(complaint("{}"), "is not the JSON that was expected: key 'ids' not found"));
  CHECK(contains(complaint(R"({"ids": 3})"), "is not the JSON that was expected: "));
  CHECK(contains(complaint("{\"ids\": [1,\n  2 3]}"), "parse error at line 2, column 5"));
  CHECK_FALSE(contains(complaint("{"), "json.exception"));
}

TEST_CASE("damaged JSON is refused") {
  for (const std::string& damaged : {std::string(""), std::string("{"), std::string("[1,"), std::string("{\"ids\" 1}"),
                                     std::string("\"open"), std::string("nan"), std::string("{\"ids\": [1]} 2"),
                                     std::string("{\"ids\": [\"\xFF\"]}"), std::string(100000, '[')}) {
    CAPTURE(damaged.substr(0, 40));
    CHECK_FALSE(complaint(damaged).empty());
  }
}

TEST_CASE("results are written with their keys in order; what JSON cannot say is null or replaced") {
  const Json result = {{"policy", "a \"b\" \\ \xFF"}, {"kl", std::numeric_limits<double>::quiet_NaN()}, {"keep", 0.25}};
  CHECK(evaluation::to_text(result) ==
        "{\n \"policy\": \"a \\\"b\\\" \\\\ \xEF\xBF\xBD\",\n \"kl\": null,\n \"keep\": 0.25\n}\n");
}
