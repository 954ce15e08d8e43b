// `compare` with one policy more than the library has: see docs/write_a_policy.md.
#include "own_policy.hpp"

#include "evaluation/compare.hpp"
#include "kvc/policy/any_policy.hpp"

int main(int argc, char** argv) {
  kvc::AnyPolicy::add("heavy_values", "the tokens with the most attention times the length of their value",
                      kvc::budget_parameters<HeavyValues>("slots a head may hold"));
  return evaluation::compare_main(argc, argv);
}
