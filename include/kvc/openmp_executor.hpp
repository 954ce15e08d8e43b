#pragma once
#if !defined(_OPENMP)
#error "kvc/openmp_executor.hpp: compile with -fopenmp"
#endif
#include <cstddef>

#include "kvc/executor.hpp"

namespace kvc::inline KVC_ABI {

/// An Executor over OpenMP's threads, for engines that already use them. Bodies must not throw.
class OpenMPExecutor final : public Executor {
 public:
  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
#pragma omp parallel for schedule(dynamic, 1)
    for (std::size_t i = 0; i < count; ++i) body(i);
  }
};

}  // namespace kvc
