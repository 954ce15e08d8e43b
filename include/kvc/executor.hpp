#pragma once
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// A callable that is not owned: cheap to pass, valid while the callable lives.
template <class Signature>
class FunctionRef;

template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  template <class Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, FunctionRef> &&
           std::is_invocable_r_v<Result, Callable&, Arguments...>)
      FunctionRef(Callable&& callable)  // NOLINT: implicit, as a parameter type
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(callable)))),
        call_([](void* object, Arguments... arguments) -> Result {
          return (*static_cast<std::remove_reference_t<Callable>*>(object))(std::forward<Arguments>(arguments)...);
        }) {}

  Result operator()(Arguments... arguments) const { return call_(object_, std::forward<Arguments>(arguments)...); }

 private:
  void* object_;
  Result (*call_)(void*, Arguments...);
};

/// Runs independent pieces of work; an engine adapts its own thread pool to this one member.
/// Results of the library are bitwise equal under every executor.
///
/// What the library asks of an executor:
/// - parallel_for returns only when no body of the call runs any more, and what the bodies wrote is then visible.
/// - A body may throw. The first exception of the call is thrown again from parallel_for, and not before all bodies that
///   were begun are done; whether those that were not begun are still called is the executor's choice.
/// - A body may call parallel_for again, and two threads may call it at once if they use caches over the same executor.
///
/// What an executor may do:
/// - It may call the bodies in any order, on any threads, the caller's among them, one by one or all at once.
/// - While a thread waits in parallel_for, it may run any other work there, other bodies of the library among it. Bodies
///   therefore hold no lock and keep nothing in thread-local memory while they call parallel_for.
class Executor {
 public:
  virtual ~Executor() = default;
  /// Calls body(0) … body(count - 1) and returns when all are done.
  virtual void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) = 0;
};

/// The default: the calling thread does everything.
class SerialExecutor final : public Executor {
 public:
  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    for (std::size_t i = 0; i < count; ++i) body(i);
  }
};

}  // namespace kvc::inline KVC_ABI
