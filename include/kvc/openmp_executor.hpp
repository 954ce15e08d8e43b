#pragma once
#if !defined(_OPENMP)
#error "kvc/openmp_executor.hpp: compile with -fopenmp"
#endif
#include <cstddef>

#include "kvc/executor.hpp"
#include "kvc/task_list.hpp"

namespace kvc::inline KVC_ABI {

/// An Executor over OpenMP's threads, for engines that already use them. An exception must not leave a parallel region:
/// the first one is kept and thrown again from parallel_for, after all other bodies are done.
class OpenMPExecutor final : public Executor {
 public:
  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    TaskList tasks(body, count);
#pragma omp parallel
    tasks.take();
    tasks.finish();
  }
};

}  // namespace kvc::inline KVC_ABI
