// `compare` with one policy more than the library has: see docs/write_a_policy.md.
#include "own_policy.hpp"

#include <vector>

#include "evaluation/compare.hpp"
#include "kvc/named/any_policy.hpp"

int main(int argc, char** argv) {
  std::vector<kvc::Parameter<HeavyValues>> parameters = kvc::budget_parameters<HeavyValues>("slots a head may hold");
  parameters.push_back(kvc::parameter("sinks", &HeavyValues::sinks, "first tokens that always stay"));
  parameters.push_back(kvc::parameter("recent", &HeavyValues::recent, "newest slots that always stay"));
  kvc::AnyPolicy::add("heavy_values", "the tokens with the most attention times the length of their value", parameters);
  return evaluation::compare_main(argc, argv);
}
