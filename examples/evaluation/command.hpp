#pragma once
#include <functional>
#include <span>
#include <string>

namespace evaluation {

/// Runs a program's `work` on the words after its name. Every error becomes one message on standard error, "name:
/// message", and the exit code 2.
int run_command(const std::string& name, int argc, const char* const* argv,
                const std::function<void(std::span<const char* const>)>& work);

}  // namespace evaluation
