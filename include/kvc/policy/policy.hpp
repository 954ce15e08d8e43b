#pragma once
/// All that the file of a policy needs.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvc/policy/budget.hpp"
#include "kvc/policy/parameters.hpp"
#include "kvc/policy/scoring.hpp"
#include "kvc/policy/verbs.hpp"
