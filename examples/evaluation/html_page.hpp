#pragma once
#include <string>

#include "results.hpp"

namespace evaluation {

/// One page that needs nothing but itself: quality against bytes, passkeys by depth, what policies keep, where the bytes
/// are, times, every figure with its error, the protocol and the commands.
std::string html_page(const Report& report);

}  // namespace evaluation
