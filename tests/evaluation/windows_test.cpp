#include "evaluation/windows.hpp"

#include <numeric>

#include "catch_shim.hpp"
#include "kvc/error.hpp"
#include "support/temporary_file.hpp"

using namespace evaluation;

namespace {

std::vector<int> text_of(std::size_t tokens) {
  std::vector<int> ids(tokens);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

}  // namespace

TEST_CASE("window w holds prompt + decode + 1 tokens from offset + w * stride") {
  const WindowPlan plan{.count = 3, .offset = 10, .stride = 100, .prompt = 4, .decode = 2};
  const auto windows = cut_windows(text_of(217), plan);
  REQUIRE(windows.size() == 3);
  CHECK(windows[0].ids == std::vector<int>{10, 11, 12, 13, 14, 15, 16});
  CHECK(windows[2].ids == std::vector<int>{210, 211, 212, 213, 214, 215, 216});
  CHECK(windows[2].prompt == 4);
}

TEST_CASE("a text that ends within the last window is refused, with what fits") {
  const WindowPlan plan{.count = 3, .offset = 10, .stride = 100, .prompt = 4, .decode = 2};
  try {
    cut_windows(text_of(216), plan);
    FAIL("a text that is too short was accepted");
  } catch (const kvc::Error& error) {
    CHECK(error.code() == kvc::ErrorCode::invalid_argument);
    CHECK(std::string(error.what()).find("2 windows fit") != std::string::npos);
  }
}

TEST_CASE("windows of a file are cut to what was asked for") {
  const TemporaryFile file(R"({"windows": [{"text": "t", "ids": [5, 6, 7, 8, 9]}, {"ids": [1, 2, 3, 4]}]})");
  const auto windows = read_windows(file.path(), {.prompt = 2, .decode = 1});
  REQUIRE(windows.size() == 2);
  CHECK(windows[0].ids == std::vector<int>{5, 6, 7, 8});
  CHECK(windows[1].ids == std::vector<int>{1, 2, 3, 4});
  CHECK_THROWS_AS(read_windows(file.path(), WindowPlan{.prompt = 2, .decode = 2}), kvc::Error);
}

TEST_CASE("a window file without windows is refused") {
  const TemporaryFile file(R"({"other": 1})");
  CHECK_THROWS_AS(read_windows(file.path(), WindowPlan{}), kvc::Error);
}
