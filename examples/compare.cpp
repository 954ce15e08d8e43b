// Compares KV-cache compression policies on a language model: see --help.
#include "evaluation/compare.hpp"

int main(int argc, char** argv) {
  return evaluation::compare_main(argc, argv);
}
