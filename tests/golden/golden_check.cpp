// golden_check [-v] DIR...: the library against recorded results of reference code, case by case.
#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "golden/runner.hpp"

namespace {

/// Cases by what became of them.
struct Counts {
  std::size_t passed = 0, failed = 0, skipped = 0;
};

void print(const golden::Verdict& verdict, bool verbose) {
  fmt::print("{}\n", verdict.line);
  for (const std::string& note : verdict.notes) fmt::print("  {}\n", note);
  for (const std::string& detail : verdict.details)
    if (verbose) fmt::print("  {}\n", detail);
  std::fflush(stdout);
}

void check_folder(const std::string& folder, bool verbose, Counts& counts) {
  std::vector<evaluation::Json> cases;
  try {
    cases = golden::cases_of(folder);
  } catch (const std::exception& error) {
    ++counts.failed;
    fmt::print("FAIL {}: {}\n", folder, error.what());
    return;
  }
  for (const evaluation::Json& entry : cases) {
    const golden::Verdict verdict = golden::judge(folder, entry, golden::all_runners());
    using Kind = golden::Verdict::Kind;
    ++(verdict.kind == Kind::passed ? counts.passed : verdict.kind == Kind::failed ? counts.failed : counts.skipped);
    print(verdict, verbose);
  }
}

}  // namespace

int main(int argument_count, char** arguments) {
  std::vector<std::string> folders;
  bool verbose = false;
  for (const std::string argument : std::span(arguments + 1, static_cast<std::size_t>(argument_count - 1)))
    if (argument == "-v" || argument == "--verbose")
      verbose = true;
    else
      folders.push_back(argument);
  if (folders.empty()) {
    fmt::print(stderr,
               "usage: golden_check [-v] DIR...\n"
               "Runs the cases of each DIR/manifest.json and compares them. -v: what was compared, tensor by tensor.\n"
               "Exit code 0: nothing failed; 1: something failed or was damaged; 2: no DIR.\n");
    return 2;
  }
  Counts counts;
  for (const std::string& folder : folders) check_folder(folder, verbose, counts);
  fmt::print("{} passed, {} failed, {} skipped\n", counts.passed, counts.failed, counts.skipped);
  return counts.failed == 0 ? 0 : 1;
}
