#include "memory_peak.hpp"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <fstream>
#include <string>

namespace evaluation {
namespace {

/// A line of /proc/self/status such as "VmHWM:   1540 kB", in bytes.
std::optional<std::size_t> status(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    std::size_t kibibytes = 0;
    if (word == name + ":" && file >> kibibytes) return kibibytes * 1024;
  }
  return std::nullopt;
}

}  // namespace

MemoryPeak::MemoryPeak() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
  std::ofstream reset("/proc/self/clear_refs");
  if (reset << "5" << std::flush) begin_ = status("VmRSS");
}

std::optional<std::size_t> MemoryPeak::bytes() const {
  const std::optional<std::size_t> peak = begin_ ? status("VmHWM") : std::nullopt;
  if (!peak) return std::nullopt;
  return *peak - std::min(*peak, *begin_);
}

}  // namespace evaluation
