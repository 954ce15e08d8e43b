#include "fuzz/fuzz_input.hpp"

#include <cstdio>
#include <cstdlib>

namespace fuzz {

namespace {
std::size_t understood_inputs = 0;
}

void note_understood() {
  ++understood_inputs;
}
std::size_t understood() {
  return understood_inputs;
}

void fail(const std::string& what) {
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::abort();
}

}  // namespace fuzz
