#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "kvc/half.hpp"

namespace kvc::inline KVC_ABI {

/// How many tokens each slot of a head stands for. It costs nothing while that is 1 everywhere, and two bytes a slot as long as
/// f16 holds every number exactly, as it does of whole numbers up to 2,048; then four.
class Multiplicity {
 public:
  bool empty() const { return halves_.empty() && floats_.empty(); }
  float operator[](std::size_t slot) const { return floats_.empty() ? from_half(halves_[slot]) : floats_[slot]; }
  void copy_to(std::span<float> tokens) const {
    for (std::size_t slot = 0; slot < tokens.size(); ++slot) tokens[slot] = (*this)[slot];
  }
  /// What a slot's logit gets added: the logarithm, for half floats out of a table of their mantissas.
  float logarithm(std::size_t slot) const {
    if (!floats_.empty()) return std::log(floats_[slot]);
    const std::uint16_t half = halves_[slot];
    const unsigned exponent = half >> 10;
    if (exponent == 0) return std::log(from_half(half));
    return (static_cast<float>(exponent) - 15.0f) * 0.693147181f + logarithms()[half & 1023u];
  }

  /// The numbers as they are kept: one of the two lists is empty.
  std::span<const std::uint16_t> halves() const { return halves_; }
  std::span<const float> floats() const { return floats_; }
  void restore(std::vector<std::uint16_t> halves, std::vector<float> floats) noexcept {
    halves_ = std::move(halves);
    floats_ = std::move(floats);
  }

  /// `slots`: how many there are.
  void set(std::size_t slot, float tokens, std::size_t slots) {
    const std::uint16_t half = to_half(tokens);
    const bool exact = from_half(half) == tokens;
    if (empty() && exact)
      fill(halves_, to_half(1.0f), slots);
    else if (empty())
      fill(floats_, 1.0f, slots);
    else if (floats_.empty() && !exact)
      widen();
    floats_.empty() ? void(halves_[slot] = half) : void(floats_[slot] = tokens);
  }
  void reserve_append(std::size_t count) {
    const auto grow = [count](auto& column) {
      const std::size_t needed = column.size() + count;
      if (!column.empty() && column.capacity() < needed)
        column.reserve(std::max(needed, column.size() + column.size() / 8));
    };
    grow(halves_);
    grow(floats_);
  }
  void resize(std::size_t slots) noexcept {
    if (!halves_.empty()) halves_.resize(slots, to_half(1.0f));
    if (!floats_.empty()) floats_.resize(slots, 1.0f);
  }
  void move(std::size_t from, std::size_t to, std::size_t count) noexcept {
    if (!halves_.empty()) std::memmove(&halves_[to], &halves_[from], count * sizeof(std::uint16_t));
    if (!floats_.empty()) std::memmove(&floats_[to], &floats_[from], count * sizeof(float));
  }
  /// Room for `slots` slots, once they stand for more than one token.
  void reserve(std::size_t slots) {
    reserved_ = std::max(reserved_, slots);
    if (!halves_.empty()) halves_.reserve(slots);
    if (!floats_.empty()) floats_.reserve(slots);
  }
  void reserve_as(const Multiplicity& other) {
    halves_.reserve(other.halves_.capacity());
    floats_.reserve(other.floats_.capacity());
  }
  std::size_t bytes() const { return halves_.capacity() * sizeof(std::uint16_t) + floats_.capacity() * sizeof(float); }

 private:
  /// Gives a column its first entries. A head that appends a slot and drops one never grows it.
  template <class T>
  void fill(std::vector<T>& column, T value, std::size_t slots) const {
    column.reserve(std::max(slots + 2, reserved_));
    column.assign(slots, value);
  }
  void widen() {
    std::vector<float> floats;
    fill(floats, 1.0f, halves_.size());
    copy_to(floats);
    floats_.swap(floats);
    std::vector<std::uint16_t>().swap(halves_);
  }
  /// log(1 + m / 1024)
  static const std::array<float, 1024>& logarithms() {
    static const std::array<float, 1024> table = [] {
      std::array<float, 1024> logs;
      for (std::size_t m = 0; m < logs.size(); ++m) logs[m] = static_cast<float>(std::log1p(double(m) / 1024));
      return logs;
    }();
    return table;
  }

  std::vector<std::uint16_t> halves_;
  std::vector<float> floats_;
  std::size_t reserved_ = 0;  // there shall be room for so many
};

}  // namespace kvc::inline KVC_ABI
