#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <tuple>
#include <vector>

#include "kvc/policy/plan.hpp"

namespace kvc::inline KVC_ABI {

/// The mean key and value of tokens that go one after the other, from sums in double precision over the rows as they were
/// stored: for policies that let one slot stand for many tokens. Part of a policy's State.
class RunningMean {
 public:
  /// Of no tokens.
  RunningMean() = default;
  explicit RunningMean(const CacheShape& shape) : sums_(shape.head_dim + shape.values_dim()) {}

  /// Adds a slot, counted as often as it stands for tokens. `plan` lends its memory.
  void add(const HeadView& head, std::size_t slot, Plan& plan) {
    const std::size_t dim = head.shape->head_dim;
    const double tokens = head.multiplicity.empty() ? 1 : double(head.multiplicity[slot]);
    const std::span<float> row = plan.scratch(sums_.size());
    head.read_slot(slot, row.first(dim), row.subspan(dim));
    for (std::size_t c = 0; c < row.size(); ++c) sums_[c] += tokens * double(row[c]);
    tokens_ += tokens;
  }
  /// How many tokens were added.
  double tokens() const { return tokens_; }

  /// Call before add() where `slot` has the mean: if it was shifted since write(), so is what it stands for.
  void follow(const HeadView& head, std::size_t slot) {
    const Rotary& rotary = head.shape->rotary;
    const double distance = double(head.positions[slot]) - double(position_);
    position_ = head.positions[slot];
    for (std::size_t i = 0, pairs = distance == 0 ? 0 : rotary.inv_freq.size(); i < pairs; ++i) {
      double &x = sums_[rotary.interleaved ? 2 * i : i], &y = sums_[rotary.interleaved ? 2 * i + 1 : i + pairs];
      const double angle = distance * double(rotary.inv_freq[i]), sine = std::sin(angle), cosine = std::cos(angle);
      const double turned = x * cosine - y * sine;
      y = x * sine + y * cosine;
      x = turned;
    }
  }

  /// Keeps a slot of the head and gives it the mean.
  void write(const HeadView& head, std::size_t slot, Plan& plan) {
    plan.keep(slot);
    position_ = head.positions[slot];
    std::size_t c = 0;
    for (const std::span<float> row : {plan.key(slot), plan.value(slot)})
      for (float& x : row) x = static_cast<float>(sums_[c++] / tokens_);
  }

  auto fields() { return std::tie(sums_, tokens_, position_); }
  /// Whether it can add tokens of this shape.
  bool is_of(const CacheShape& shape) const { return sums_.size() == shape.head_dim + shape.values_dim(); }
  std::size_t bytes() const { return sizeof(RunningMean) + sums_.capacity() * sizeof(double); }

 private:
  std::vector<double> sums_;  // [head_dim + value_dim]
  double tokens_ = 0;
  Position position_ = 0;  // where the slot that has the mean stood, for which the keys in the sum are rotated
};

}  // namespace kvc::inline KVC_ABI
