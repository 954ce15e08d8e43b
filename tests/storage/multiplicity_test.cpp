#include <kvc/storage/multiplicity.hpp>

#include <cmath>
#include <vector>

#include "catch_shim.hpp"

using kvc::Multiplicity;

TEST_CASE("Multiplicities cost nothing while they are 1, two bytes where f16 holds them, and four otherwise") {
  Multiplicity tokens;
  CHECK(tokens.empty());
  CHECK(tokens.bytes() == 0);
  tokens.set(3, 2.5f, 100);
  CHECK(tokens.bytes() < 100 * sizeof(float));
  CHECK(tokens[3] == 2.5f);
  CHECK(tokens[4] == 1.0f);
  tokens.set(7, 4097, 100);  // f16 has 4096 and 4100
  CHECK(tokens.bytes() >= 100 * sizeof(float));
  CHECK(tokens[7] == 4097.0f);
  CHECK(tokens[3] == 2.5f);
}

TEST_CASE("The logarithm of every multiplicity that f16 holds is right to the rounding of a float") {
  Multiplicity tokens;
  tokens.set(0, 1, 1);
  for (std::uint32_t bits = 1; bits < 0x7C00u; ++bits) {
    const float number = kvc::from_half(static_cast<std::uint16_t>(bits));
    tokens.set(0, number, 1);
    const double expected = std::log(double(number));
    REQUIRE(std::abs(double(tokens.logarithm(0)) - expected) <= 1e-6 * std::max(1.0, std::abs(expected)));
  }
}

TEST_CASE("Slots that are appended stand for one token, and slots that move take their numbers along") {
  for (const float large : {3.0f, 4097.0f}) {
    Multiplicity tokens;
    tokens.set(2, large, 4);
    tokens.reserve_append(2);
    tokens.resize(6);
    CHECK(tokens[5] == 1.0f);
    tokens.move(2, 0, 1);
    tokens.resize(1);
    CHECK(tokens[0] == large);
  }
}
