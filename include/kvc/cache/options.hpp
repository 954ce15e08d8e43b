#pragma once
#include <memory_resource>

#include "kvc/arithmetic.hpp"
#include "kvc/executor.hpp"
#include "kvc/format.hpp"

namespace kvc::inline KVC_ABI {

/// What an engine may set about a cache besides the policy.
struct CacheOptions {
  Dense dense = {};              ///< element type of rows that no codec has sealed; default f16
  Executor* executor = nullptr;  ///< runs independent heads; null: the calling thread. Must outlive the cache
  std::pmr::memory_resource* memory =
      nullptr;  ///< of the blocks; null: an Arena of the cache's own. Must outlive the cache
  Arithmetic arithmetic = Arithmetic::accurate;  ///< of attention over quantized rows
  /// Refuse NaN and infinity in queries, keys and values, and keys and values beyond what the formats of their layer hold.
  bool check_finite = true;
};

}  // namespace kvc::inline KVC_ABI
