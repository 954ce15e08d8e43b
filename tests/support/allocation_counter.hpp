#pragma once
#include <atomic>
#include <cstddef>

/// A program that is linked with allocation_counter.cpp has its operator new counted, and refused where a test wants that.
namespace support {

/// Calls of operator new so far. Tests look at the difference of two marks.
extern std::atomic<std::size_t> allocation_count;

/// That many more allocations succeed, and the one after them throws std::bad_alloc; negative: none is refused. For tests whose
/// own allocations come in between, which set it aside for their time.
extern std::atomic<std::ptrdiff_t> allocations_until_refusal;

/// While it lives, one allocation of the program fails: the one after `before` others, and with `for_good` all later ones too.
/// Allocations that a test makes of its own would count: what it needs is made before.
class AllocationFault {
 public:
  explicit AllocationFault(std::size_t before, bool for_good = false);
  ~AllocationFault();
  AllocationFault(const AllocationFault&) = delete;
  AllocationFault& operator=(const AllocationFault&) = delete;
  /// Whether an allocation was refused since the fault was made.
  static bool happened();
};

/// Called where memory is obtained: counts, and throws std::bad_alloc if it is this one's turn. For memory resources of tests.
void count_allocation();

}  // namespace support
