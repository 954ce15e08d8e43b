#pragma once

namespace evaluation {

/// What the program `compare` does: compares the policies named on its command line, the library's and those that
/// kvc::AnyPolicy::add() made known before. Returns the exit code.
int compare_main(int argc, const char* const* argv);

}  // namespace evaluation
