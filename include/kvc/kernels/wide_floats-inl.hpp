// The kernels that gain from registers wider than those of the `narrower` target, which has the others. Re-included, no guard.
#include "kvc/simd/math-inl.hpp"

#include "kvc/kernels/dense/product-inl.hpp"
#include "kvc/kernels/packed/metadata-inl.hpp"
#include "kvc/kernels/packed/decode-inl.hpp"
#include "kvc/kernels/packed/product-inl.hpp"

namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {
using narrower::Strip;
using narrower::StripEncoders;
using narrower::StripDepth;
using narrower::TileRows;
}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
#include "kvc/kernels/packed/encode_strip-inl.hpp"
#include "kvc/kernels/softmax-inl.hpp"

namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline void packed_encode(const PackedLayout& layout, void* block, const Area& area, const ConstFloatMatrix& source) {
  narrower::encode_with(OwnStripEncoders, layout, block, area, source);
}

inline void packed_product(const PackedLayout& layout, const void* block, const Area& area,
                           const Coefficients& coefficients, const Results& results) {
  if (coefficients.arithmetic == Arithmetic::exact)
    exact_product(layout, block, area, coefficients, results);
  else
    narrower::packed_product(layout, block, area, coefficients, results);
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
