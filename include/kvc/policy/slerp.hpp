#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <numeric>
#include <span>
#include <vector>

#include "kvc/words.hpp"

// The arithmetic of merging two rows into one direction, in double precision whatever the rows' own.
namespace kvc::inline KVC_ABI {

/// Two rows of the same token in adjacent layers: their norms, at least 1e-6, and the angle between them in radians, from
/// a cosine clamped to +-(1 - 1e-6). A row of zeros is at a right angle to everything.
struct RowPair {
  double norm_below = 0, norm_here = 0, angle = 0;

  /// The angle as a fraction of pi: 0 where the rows point the same way, 1 where they oppose each other.
  double distance() const { return angle / std::numbers::pi; }
};

inline RowPair compare_rows(std::span<const float> below, std::span<const float> here) {
  constexpr double SmallestNorm = 1e-6, LargestCosine = 1 - 1e-6;
  double product = 0, squares_below = 0, squares_here = 0;
  for (std::size_t i = 0; i < below.size(); ++i) {
    product += double(below[i]) * double(here[i]);
    squares_below += double(below[i]) * double(below[i]);
    squares_here += double(here[i]) * double(here[i]);
  }
  RowPair pair{std::max(std::sqrt(squares_below), SmallestNorm), std::max(std::sqrt(squares_here), SmallestNorm)};
  pair.angle = std::acos(std::clamp(product / (pair.norm_below * pair.norm_here), -LargestCosine, LargestCosine));
  return pair;
}

/// Spherical interpolation: writes the unit vector that lies a fraction `t` of the way from the direction of `below` (0)
/// to that of `here` (1). Where rows oppose each other so exactly that no direction lies between them, it is that of
/// `here`; zeros only if both rows are.
inline void slerp(std::span<const float> below, std::span<const float> here, const RowPair& pair, double t,
                  std::span<float> direction) {
  constexpr double SmallestSine = 1e-6, SmallestLength = 1e-6;
  const double sine = std::sin(pair.angle);
  const bool linear = std::abs(sine) <= SmallestSine;
  const double of_below = (linear ? 1 - t : std::sin((1 - t) * pair.angle) / sine) / pair.norm_below;
  const double of_here = (linear ? t : std::sin(t * pair.angle) / sine) / pair.norm_here;
  const auto write = [&](double scale_below, double scale_here) {
    double squares = 0;
    for (std::size_t i = 0; i < direction.size(); ++i) {
      const double x = scale_below * double(below[i]) + scale_here * double(here[i]);
      squares += x * x;
    }
    const double length = std::sqrt(squares);
    if (length < SmallestLength) return false;
    for (std::size_t i = 0; i < direction.size(); ++i)
      direction[i] = static_cast<float>((scale_below * double(below[i]) + scale_here * double(here[i])) / length);
    return true;
  };
  if (write(of_below, of_here) || write(0, 1 / pair.norm_here) || write(1 / pair.norm_below, 0)) return;
  std::fill(direction.begin(), direction.end(), 0.0f);
}

/// Which tokens of a merged pair stay as they are, by the distance between their two rows.
enum class Retention : std::uint8_t {
  far,      ///< distance > max - gamma * (max - min): the most distinct ones
  literal,  ///< distance < min + gamma * (max - min): as the paper prints it, though this keeps the most similar ones
  count,    ///< the ceil(ratio * tokens) farthest; on equal distances the older ones
  none,
};
constexpr auto words_of(Retention) {
  return words(word("far", Retention::far), word("literal", Retention::literal), word("count", Retention::count),
               word("none", Retention::none));
}

/// A flag per token, 1 where it is retained.
inline std::vector<std::uint8_t> choose_retained(std::span<const double> distances, Retention rule, double gamma,
                                                 double ratio) {
  std::vector<std::uint8_t> retained(distances.size());
  if (distances.empty() || rule == Retention::none) return retained;
  if (rule == Retention::count) {
    const double wanted = std::ceil(ratio * static_cast<double>(distances.size()));
    const std::size_t count = std::min(static_cast<std::size_t>(wanted), distances.size());
    std::vector<std::size_t> order(distances.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return distances[a] > distances[b]; });
    for (std::size_t i = 0; i < count; ++i) retained[order[i]] = 1;
    return retained;
  }
  const auto [least, most] = std::minmax_element(distances.begin(), distances.end());
  // Interpolated, so that gamma = 1 means exactly the other end.
  const double threshold = rule == Retention::far ? std::lerp(*most, *least, gamma) : std::lerp(*least, *most, gamma);
  for (std::size_t i = 0; i < distances.size(); ++i)
    retained[i] = rule == Retention::far ? distances[i] > threshold : distances[i] < threshold;
  return retained;
}

}  // namespace kvc::inline KVC_ABI
