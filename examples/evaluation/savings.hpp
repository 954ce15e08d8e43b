#pragma once
#include <string>

#include "kvc/stats.hpp"

namespace evaluation {

/// What a cache saved, in a sentence for its user. `heads`: the KV heads of all layers together.
std::string savings(const kvc::Stats& stats, std::size_t heads);

}  // namespace evaluation
