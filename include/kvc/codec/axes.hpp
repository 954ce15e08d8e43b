#pragma once
#include <cstddef>

#include "kvc/codec/codec.hpp"
#include "kvc/kernels/table.hpp"

namespace kvc::inline KVC_ABI::detail {

/// How rows lie in a block as the kernels see it, a matrix x[p][lane]: tokens are the lanes of keys, and channels those of
/// values (see kernels/table.hpp).
struct Axes {
  Role role;
  std::size_t dim;

  /// Whole rows [first, first + count) of a block.
  kernels::Area rows(std::size_t first, std::size_t count) const {
    return role == Role::key ? kernels::Area{first, count, 0, dim} : kernels::Area{0, dim, first, count};
  }
  kernels::ConstFloatMatrix source(ConstRows rows) const {
    return role == Role::key ? kernels::ConstFloatMatrix{rows.data, 1, rows.stride}
                             : kernels::ConstFloatMatrix{rows.data, rows.stride, 1};
  }
  kernels::FloatMatrix target(Rows<float> rows) const {
    return role == Role::key ? kernels::FloatMatrix{rows.data, 1, rows.stride}
                             : kernels::FloatMatrix{rows.data, rows.stride, 1};
  }
};

}  // namespace kvc::detail
