#pragma once
#if !defined(_OPENMP)
#error "kvc/openmp_executor.hpp: compile with -fopenmp"
#endif
#include <cstddef>
#include <exception>

#include "kvc/executor.hpp"

namespace kvc::inline KVC_ABI {

/// An Executor over OpenMP's threads, for engines that already use them. An exception must not leave a parallel region:
/// the first one is kept and thrown again from parallel_for, after all other bodies are done.
class OpenMPExecutor final : public Executor {
 public:
  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) shared(failure)
    for (std::size_t i = 0; i < count; ++i) {
#if defined(__cpp_exceptions)
      try {
        body(i);
      } catch (...) {
#pragma omp critical(kvc_openmp_executor)
        if (!failure) failure = std::current_exception();
      }
#else
      body(i);
#endif
    }
    if (failure) std::rethrow_exception(failure);
  }
};

}  // namespace kvc::inline KVC_ABI
