#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "comparison.hpp"
#include "contestants.hpp"
#include "engine/matmul.hpp"
#include "windows.hpp"

namespace evaluation {

/// What `compare` was asked to do.
struct CompareOptions {
  bool help = false;
  bool parameters = false;            ///< print the tables of parameters
  std::string model, text;            ///< paths
  std::string windows_file, samples;  ///< paths; empty: windows and samples are made from the text
  std::string json;                   ///< path; empty: none
  std::string heads;                  ///< path of a head table; empty: one is made if a policy wants it
  WindowPlan windows;
  std::size_t passkeys = 0;  ///< samples to make
  std::size_t threads = 0;   ///< 0: one per processor
  engine::Arithmetic arithmetic = engine::Arithmetic::f32;  ///< of the model's linear layers
  ComparisonOptions comparison;
  std::vector<Contestant> contestants;

  bool needs_text() const { return passkeys != 0 || (windows_file.empty() && windows.count != 0); }
};

/// Reads the words after the program's name. Throws kvc::Error for anything that cannot be meant.
CompareOptions read_compare_options(std::span<const char* const> words);

std::string compare_help();

/// The tables of parameters in docs/policies.md.
std::string compare_parameters();

}  // namespace evaluation
