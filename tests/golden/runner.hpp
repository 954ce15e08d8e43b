#pragma once
#include <span>
#include <string>
#include <vector>

#include "golden/case.hpp"
#include "golden/check.hpp"

namespace golden {

/// Runs the cases of one policy or codec. A new one is a file run_<policy>.cpp that defines a Runner, and a line in
/// runners.cpp. Both functions decide by policy, parameters and tensors, never by a case's name.
struct Runner {
  /// Whether run() can run the case; a case that nobody accepts is skipped.
  bool (*accepts)(const Case& golden);
  /// Runs the case through the public interface, in every way (check.hpp), and compares every expected tensor.
  void (*run)(const Case& golden, Check& check);
  /// What the library lacks to run an accepted case, a sentence of its own (an Error's); empty: nothing.
  std::string (*lacks)(const Case& golden) = nullptr;
};

/// All runners. Of several that accept a case the first one runs it.
std::span<const Runner* const> all_runners();

/// What became of a case.
struct Verdict {
  enum class Kind { passed, failed, skipped };
  Kind kind = Kind::failed;
  std::string line;                  ///< PASS name, FAIL name: why, or SKIP name: why
  std::vector<std::string> details;  ///< what was compared, for those who want to know
  std::vector<std::string> notes;    ///< what was not compared, and why
};

/// Loads a case of a folder's manifest and lets its runner run it. Never throws: what is damaged fails.
Verdict judge(const std::string& folder, const evaluation::Json& entry, std::span<const Runner* const> runners);

}  // namespace golden
