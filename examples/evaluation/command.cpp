#include "command.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <new>

namespace evaluation {

int run_command(const std::string& name, int argc, const char* const* argv,
                const std::function<void(std::span<const char* const>)>& work) {
  try {
    const auto words = static_cast<std::size_t>(argc);
    work(std::span(argv, words).subspan(words == 0 ? 0 : 1));
    if (std::fflush(stdout) == 0) return 0;
    fmt::print(stderr, "{}: standard output cannot be written\n", name);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "{}: not enough memory; a shorter prompt or fewer policies need less\n", name);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}: {}\n", name, error.what());
  }
  return 2;
}

}  // namespace evaluation
