#pragma once
#include <new>
#include <stdexcept>

#include "kvc/error.hpp"

namespace kvc::inline KVC_ABI::cache {

/// Does a call; memory that is refused becomes an Error.
template <class Call>
decltype(auto) guarded(const char* name, Call call) {
#if defined(__cpp_exceptions)
  try {
    return call();
  } catch (const std::bad_alloc&) {
    fail(ErrorCode::out_of_memory, {name, ": memory was refused; the cache is as it was before the call"});
  } catch (const std::length_error&) {
    fail(ErrorCode::out_of_memory, {name,
                                    ": more memory was asked for than there can be; the cache is as "
                                    "it was before the call"});
  }
#else
  static_cast<void>(name);
  return call();
#endif
}

}  // namespace kvc::inline KVC_ABI::cache
