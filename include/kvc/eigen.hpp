#pragma once
/// Eigen views at the border of the library; paid for only by who includes this.
#include <Eigen/Core>
#include <cstddef>

#include "kvc/cache/core.hpp"
#include "kvc/views.hpp"

namespace kvc::inline KVC_ABI {

using EigenRows = Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>,
                             Eigen::Unaligned, Eigen::OuterStride<>>;
using MutableEigenRows = Eigen::Map<Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>,
                                    Eigen::Unaligned, Eigen::OuterStride<>>;

/// The rows as an Eigen matrix [count, dim]; nothing is copied.
inline EigenRows as_eigen(ConstRows rows) {
  return {rows.data, static_cast<Eigen::Index>(rows.count), static_cast<Eigen::Index>(rows.dim),
          Eigen::OuterStride<>(static_cast<Eigen::Index>(rows.stride))};
}
inline MutableEigenRows as_eigen(Rows<float> rows) {
  return {rows.data, static_cast<Eigen::Index>(rows.count), static_cast<Eigen::Index>(rows.dim),
          Eigen::OuterStride<>(static_cast<Eigen::Index>(rows.stride))};
}

/// A row-major Eigen matrix or block of floats as rows; nothing is copied, so it must outlive the view.
template <class Derived>
ConstRows as_rows(const Eigen::DenseBase<Derived>& matrix) {
  static_assert(Derived::IsRowMajor, "as_rows needs a row-major matrix: rows of a column-major one are not contiguous");
  return {matrix.derived().data(), static_cast<std::size_t>(matrix.rows()), static_cast<std::size_t>(matrix.cols()),
          static_cast<std::size_t>(matrix.derived().outerStride())};
}

/// Dense copies of a head's keys [slots, head_dim] and values [slots, value_dim].
struct EigenHead {
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> keys, values;
};
inline EigenHead gather(const CacheCore& cache, HeadId id) {
  const auto slots = static_cast<Eigen::Index>(cache.positions(id).size());
  EigenHead head;
  head.keys.resize(slots, static_cast<Eigen::Index>(cache.shape().head_dim));
  head.values.resize(slots, static_cast<Eigen::Index>(cache.shape().values_dim()));
  const auto rows = [](auto& matrix) {
    return Rows<float>(matrix.data(), static_cast<std::size_t>(matrix.rows()), static_cast<std::size_t>(matrix.cols()));
  };
  cache.gather(id, rows(head.keys), rows(head.values));
  return head;
}

}  // namespace kvc
