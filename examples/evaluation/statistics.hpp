#pragma once
#include <optional>
#include <span>
#include <vector>

namespace evaluation {

/// The mean of some repetitions, and how far it may be off.
struct Mean {
  double value = 0;
  std::optional<double> error =
      {};  ///< the standard error: deviation / sqrt(repetitions); none: fewer than two of them
};

/// None of no values.
std::optional<Mean> mean_of(std::span<const double> values);

/// The middle one of an odd number of values, else the upper of the two in the middle. There must be one.
double median(std::vector<double> values);

}  // namespace evaluation
