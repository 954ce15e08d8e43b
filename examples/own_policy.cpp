// `compare` with one policy more than the library has: see docs/write_a_policy.md.
#include "own_policy.hpp"

#include "evaluation/compare.hpp"
#include "kvc/named/any_policy.hpp"

int main(int argc, char** argv) {
  kvc::AnyPolicy::add<HeavyValues>("heavy_values",
                                   "Keeps the tokens with the most attention times the length of their value.");
  return evaluation::compare_main(argc, argv);
}
