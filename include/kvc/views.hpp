#pragma once
#include <cstddef>
#include <span>
#include <type_traits>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// A strided 2-D view of `count` rows of `dim` elements, `stride` elements apart. It never owns.
template <class T>
struct Rows {
  T* data = nullptr;
  std::size_t count = 0, dim = 0, stride = 0;

  constexpr Rows() = default;
  constexpr Rows(T* rows, std::size_t row_count, std::size_t row_dim, std::size_t row_stride)
      : data(rows), count(row_count), dim(row_dim), stride(row_stride) {}
  /// Contiguous rows.
  constexpr Rows(T* rows, std::size_t row_count, std::size_t row_dim) : Rows(rows, row_count, row_dim, row_dim) {}
  /// A mutable view reads as a constant one.
  template <class U>
  requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>) constexpr Rows(const Rows<U>& other)
      : Rows(other.data, other.count, other.dim, other.stride) {}  // NOLINT

  constexpr std::span<T> operator[](std::size_t row) const { return {data + row * stride, dim}; }
  /// Rows [begin, begin + rows).
  constexpr Rows subrows(std::size_t begin, std::size_t rows) const {
    return {data + begin * stride, rows, dim, stride};
  }
  /// Columns [begin, begin + columns) of every row.
  constexpr Rows columns(std::size_t begin, std::size_t width) const { return {data + begin, count, width, stride}; }
};

using ConstRows = Rows<const float>;

}  // namespace kvc
