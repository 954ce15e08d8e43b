#include "progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

namespace evaluation {

Progress::Progress() : terminal_(isatty(STDERR_FILENO) != 0), start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  if (terminal_) fmt::print(stderr, "\r{:<79}\r", "");
}

void Progress::begin(std::string part) {
  part_ = std::move(part);
  show(part_);
}

void Progress::step(const std::string& detail) {
  if (terminal_) show(part_ + ", " + detail);
}

void Progress::show(const std::string& line) {
  const auto seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - start_).count();
  const std::string text = fmt::format("[{}:{:02}] {}", seconds / 60, seconds % 60, line);
  if (terminal_)
    fmt::print(stderr, "\r{:<79}", text);
  else
    fmt::print(stderr, "{}\n", text);
  std::fflush(stderr);
}

}  // namespace evaluation
