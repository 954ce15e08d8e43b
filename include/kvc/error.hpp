#pragma once
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kvc/abi.hpp"
#include "kvc/fragment.hpp"

namespace kvc::inline KVC_ABI {

/// What kind of mistake an Error reports, for callers that branch on it.
enum class ErrorCode {
  invalid_argument,   ///< a parameter outside its domain
  shape_mismatch,     ///< rows, columns or counts that do not fit the CacheShape
  impossible_budget,  ///< a budget smaller than what the policy must protect
  non_finite,         ///< NaN, infinity, or a number that the rows' format cannot hold
  missing_feed,       ///< a policy needs something that the engine did not pass
  unknown_name,       ///< a policy or parameter name that does not exist
  incompatible,       ///< stages or settings that cannot be combined
  bad_file,           ///< a damaged or foreign file
  out_of_memory,      ///< memory was refused
};

/// Whoever throws it leaves everything as it was; what() names the argument, what came and what was expected.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// Called instead of a throw where exceptions are off (-fno-exceptions); must not return.
using ErrorHandler = void (*)(const Error&);

namespace detail {
inline ErrorHandler& error_handler() {
  static ErrorHandler handler = nullptr;
  return handler;
}
}  // namespace detail

/// Sets the handler of builds without exceptions; the default prints the sentence and aborts.
inline void set_error_handler(ErrorHandler handler) {
  detail::error_handler() = handler;
}

/// Throws Error(code, message), or hands it to the handler where exceptions are off.
[[noreturn, gnu::cold, gnu::noinline]] inline void fail(ErrorCode code, std::string_view message) {
#if defined(__cpp_exceptions)
  throw Error(code, std::string(message));
#else
  const Error error(code, std::string(message));
  if (ErrorHandler handler = detail::error_handler()) handler(error);
  std::fprintf(stderr, "kvc: %s\n", error.what());
  std::abort();
#endif
}
/// The same with a message of several fragments: fail(code, {"Quest: page must be positive, got ", page}).
[[noreturn, gnu::cold, gnu::noinline]] inline void fail(ErrorCode code, std::initializer_list<Fragment> message) {
  fail(code, joined(message));
}

}  // namespace kvc
