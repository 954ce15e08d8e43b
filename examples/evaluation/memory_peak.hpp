#pragma once
#include <cstddef>
#include <optional>

namespace evaluation {

/// Measures how much more memory the program holds at some moment of the object's life than at its beginning. It asks the
/// kernel (Linux: VmHWM after writing to /proc/self/clear_refs), so that everybody's memory counts, whoever allocates it.
class MemoryPeak {
 public:
  /// Gives freed memory back first: what is taken again would not count otherwise.
  MemoryPeak();
  /// None where the kernel does not tell.
  std::optional<std::size_t> bytes() const;

 private:
  std::optional<std::size_t> begin_;
};

}  // namespace evaluation
