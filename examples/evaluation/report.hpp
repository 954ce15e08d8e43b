#pragma once
#include <string>

#include "results.hpp"

namespace evaluation {

/// The tables with their legend, for people at a terminal.
std::string table(const Report& report);

}  // namespace evaluation
