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
  std::string model;                  ///< path
  std::vector<std::string> texts;     ///< paths
  bool tuning = false;                ///< the texts are for settling parameters
  std::string windows_file, samples;  ///< paths; empty: windows and samples are made from the texts
  std::string json, html, svg;        ///< paths of what is written; empty: none
  std::vector<std::string> from;      ///< paths of results; not empty: nothing is run
  std::string heads;                  ///< path of a head table; empty: one is made if a policy wants it
  std::vector<std::size_t> prompts;   ///< lengths
  WindowPlan windows;                 ///< of each text; the prompt's length is one of these
  std::size_t passkeys = 0;           ///< prompts with hidden numbers to make, of all texts together
  std::size_t needles = 1;            ///< numbers in each of them
  std::size_t threads = 0;            ///< 0: one per processor
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
