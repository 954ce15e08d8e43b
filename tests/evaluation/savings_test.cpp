#include "evaluation/savings.hpp"

#include "catch_shim.hpp"

using evaluation::savings;

TEST_CASE("a user reads what a cache takes, what fp16 would take, and how many tokens stay") {
  kvc::Stats stats;
  stats.seen = 1600;
  stats.slots = 90 * 400;
  stats.payload = 4 << 20;
  stats.dense_bytes = 32 << 20;
  CHECK(savings(stats, 90) ==
        "The cache holds 1600 tokens in 4096 KiB; their keys and values would take 32768 KiB in fp16: it is 8.0 times "
        "smaller. A head keeps 400 of the tokens.");
}

TEST_CASE("a cache that is larger than fp16 is not praised") {
  kvc::Stats stats;
  stats.seen = 40;
  stats.slots = 90 * 40;
  stats.payload = 1100 << 10;
  stats.dense_bytes = 1000 << 10;
  const std::string text = savings(stats, 90);
  CHECK(text.find("Nothing is saved") != std::string::npos);
  CHECK(text.find("Every head keeps all tokens.") != std::string::npos);
  CHECK(text.find("times smaller") == std::string::npos);
}
