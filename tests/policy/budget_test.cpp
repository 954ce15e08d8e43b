#include <kvc/policy/budget.hpp>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using kvc::Budget;

namespace {
const kvc::CacheShape Shape{.layers = 30, .query_heads = 4, .kv_heads = 2};
}

TEST_CASE("a budget of tokens is the same for every head and any number of tokens seen") {
  const Budget budget = 1024;
  CHECK(budget.at({0, 0}, 10, Shape) == 1024);
  CHECK(budget.at({29, 1}, 100000, Shape) == 1024);
}

TEST_CASE("a floating-point number does not silently become a budget of tokens") {
  STATIC_REQUIRE(!std::is_convertible_v<double, Budget>);
  STATIC_REQUIRE(std::is_convertible_v<int, Budget>);
  REQUIRE_THROWS_AS(Budget(-1), kvc::Error);
}

TEST_CASE("a fraction is truncated, and at least one slot") {
  CHECK(Budget::fraction(0.25).at({0, 0}, 1023, Shape) == 255);
  CHECK(Budget::fraction(0.125).at({0, 0}, 1024, Shape) == 128);
  CHECK(Budget::fraction(0.25).at({0, 0}, 3, Shape) == 1);
  CHECK(Budget::fraction(1).at({0, 0}, 77, Shape) == 77);
}

TEST_CASE("a fraction outside (0, 1] is refused") {
  const double fraction = GENERATE(0.0, -0.5, 1.01, std::nan(""));
  REQUIRE_THROWS_AS(Budget::fraction(fraction), kvc::Error);
}

TEST_CASE("a pyramid falls from the first layer to the last with the budget as its mean") {
  const Budget budget = Budget::pyramid(256, 32);
  CHECK(budget.at({0, 0}, 100000, Shape) == 32 + 2 * 224 - 11);  // 224 / 20 = 11.2
  CHECK(budget.at({29, 1}, 100000, Shape) == 32 + 11);
  double sum = 0;
  for (unsigned layer = 0; layer < 30; ++layer) {
    if (layer) CHECK(budget.at({layer, 0}, 100000, Shape) < budget.at({layer - 1, 0}, 100000, Shape));
    sum += double(budget.at({layer, 0}, 100000, Shape));
  }
  CHECK(std::abs(sum / 30 - 256) < 0.5);
}

TEST_CASE("a pyramid of tokens asks no layer for more than the prompt has") {
  const Budget budget = Budget::pyramid(256, 32);
  CHECK(budget.at({0, 0}, 460, Shape) == 460);              // its 469 do not exist
  CHECK(budget.at({29, 0}, 460, Shape) == 32 + 448 - 428);  // what layer 0 lacks, layer 29 gets
  CHECK(budget.at({0, 0}, 447, Shape) == 256);              // below 2 * 224 tokens all layers are alike
  CHECK(budget.at({29, 0}, 447, Shape) == 256);
}

TEST_CASE("a pyramid of a fraction has kvpress's budgets") {
  const Budget half = Budget::pyramid(Budget::fraction(0.5), 64), quarter = Budget::pyramid(Budget::fraction(0.25), 64);
  CHECK(half.at({0, 0}, 1024, Shape) == 960);
  CHECK(half.at({29, 0}, 1024, Shape) == 64);
  CHECK(quarter.at({0, 0}, 1024, Shape) == 256);  // the last layer would fall below the window: all alike
  CHECK(quarter.at({29, 0}, 1024, Shape) == 256);
}

TEST_CASE("a pyramid needs a mean that holds its window, and a beta of at least 1") {
  REQUIRE_THROWS_AS(Budget::pyramid(31, 32), kvc::Error);
  REQUIRE_THROWS_AS(Budget::pyramid(64, 32, 0.5), kvc::Error);
  REQUIRE_THROWS_AS(Budget::pyramid(Budget::pyramid(64, 32), 32), kvc::Error);
}

TEST_CASE("a pyramid over a single layer is its mean") {
  const kvc::CacheShape one{};
  CHECK(Budget::pyramid(256, 32).at({0, 0}, 5000, one) == 256);
}

TEST_CASE("a table gives every head its own budget") {
  std::vector<std::size_t> entries(60);
  for (std::size_t i = 0; i < entries.size(); ++i) entries[i] = i + 1;
  const Budget budget = Budget::table(std::make_shared<const std::vector<std::size_t>>(entries));
  CHECK(budget.at({0, 0}, 1000, Shape) == 1);
  CHECK(budget.at({7, 1}, 1000, Shape) == 16);
  CHECK(budget.at({29, 1}, 1000, Shape) == 60);
}

TEST_CASE("a table that does not fit the cache is refused with both sizes") {
  const Budget budget = Budget::table(std::make_shared<const std::vector<std::size_t>>(59, 8));
  CHECK(support::error_text([&] {
          budget.at({0, 0}, 1, Shape);
        }) == "Budget: the table has 59 entries, but the cache has 60 heads");
  REQUIRE_THROWS_AS(Budget::table(nullptr), kvc::Error);
}

TEST_CASE("a head that the cache does not have is refused") {
  REQUIRE_THROWS_AS(Budget(8).at({30, 0}, 1, Shape), kvc::Error);
  REQUIRE_THROWS_AS(Budget(8).at({0, 2}, 1, Shape), kvc::Error);
}

TEST_CASE("require names what does not fit, and lets fractions pass because they depend on the text") {
  CHECK(support::error_text([] { Budget(8).require(9, "X: window", Shape); }) ==
        "X: window (9) must not exceed the budget (8)");
  CHECK(support::error_text([] { Budget(9).require(9, "X: window", Shape); }) == "none");
  CHECK(support::error_text([] { Budget::fraction(0.01).require(9, "X: window", Shape); }) == "none");
  CHECK(support::error_text([] { Budget::pyramid(256, 32).require(44, "X: window", Shape); }) ==
        "X: window (44) must not exceed the budget (43)");
}

TEST_CASE("budgets are equal when they give the same slots by the same rule") {
  const auto table = [](std::size_t slots) {
    return Budget::table(std::make_shared<const std::vector<std::size_t>>(60, slots));
  };
  CHECK(Budget(8) == Budget(8));
  CHECK(!(Budget(8) == Budget(9)));
  CHECK(!(Budget(1) == Budget::fraction(1)));
  CHECK(!(Budget(64) == Budget::pyramid(64, 32)));
  CHECK(table(4) == table(4));
  CHECK(!(table(4) == table(5)));
}

TEST_CASE("budgets say what they are") {
  CHECK(Budget(1024).to_string() == "1024");
  CHECK(Budget::fraction(0.25).to_string() == "0.25");
  CHECK(Budget::fraction(1).to_string() == "1.0");
  CHECK(Budget::pyramid(1024, 32).to_string() == "pyramid(1024, window 32, beta 20)");
  CHECK(Budget::table(std::make_shared<const std::vector<std::size_t>>(60, 1)).to_string() == "table(60 heads)");
}
