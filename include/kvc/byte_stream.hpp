#pragma once
#include <cstddef>
#include <span>

#include "kvc/executor.hpp"

namespace kvc::inline KVC_ABI {

/// Takes bytes, such as those of a file that is written; false: it could not take them all.
using ByteSink = FunctionRef<bool(std::span<const std::byte>)>;
/// Fills the span with the next bytes and returns how many those were. Fewer than asked for are no end, but 0 is.
using ByteSource = FunctionRef<std::size_t(std::span<std::byte>)>;

}  // namespace kvc::inline KVC_ABI
