#include "progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <utility>

#include "command.hpp"

namespace evaluation {

std::string time_left(std::chrono::duration<double> passed, double done) {
  const double seconds = passed.count() * (1 - done) / done;
  return seconds < 90 ? fmt::format(" (about {:.0f} s left)", seconds)
                      : fmt::format(" (about {:.0f} min left)", seconds / 60);
}

Progress::Progress() : terminal_(isatty(STDERR_FILENO) != 0), start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  if (terminal_) tell("\r" + std::string(79, ' ') + "\r");
}

void Progress::begin(std::string part, double done) {
  part_ = std::move(part);
  if (done > 0) part_ += time_left(std::chrono::steady_clock::now() - start_, done);
  show(part_);
}

void Progress::step(const std::string& detail) {
  if (terminal_) show(part_ + ", " + detail);
}

void Progress::show(const std::string& line) {
  const auto seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - start_).count();
  const std::string text = fmt::format("[{}:{:02}] {}", seconds / 60, seconds % 60, line);
  tell(terminal_ ? fmt::format("\r{:<79}", text) : text + "\n");
}

}  // namespace evaluation
