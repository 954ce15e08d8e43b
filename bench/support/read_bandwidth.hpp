#pragma once
#include <cstddef>

namespace bench {

/// Bytes per second that `threads` threads read together from a buffer of `bytes`, each its own part: the median of several
/// passes, measured now. What a kernel that does nothing but read could reach.
double read_bandwidth(std::size_t bytes, std::size_t threads);

}  // namespace bench
