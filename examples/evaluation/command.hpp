#pragma once
#include <functional>
#include <span>
#include <string>

namespace evaluation {

/// Runs a program's `work` on the words after its name. Every error becomes one message on standard error, "name:
/// message", and the exit code 2. So does a file that another program cuts short while it is mapped into memory.
int run_command(const std::string& name, int argc, const char* const* argv,
                const std::function<void(std::span<const char* const>)>& work);

/// Writes `text` to standard error. Never throws: whether anybody reads messages must not decide about the work.
void tell(const std::string& text) noexcept;

/// Writes `text` to standard output, at once. Throws kvc::Error (bad_file) if it cannot be written.
void print(const std::string& text);

}  // namespace evaluation
