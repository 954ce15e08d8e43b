// All kernels of one target, in order of dependence, and their table. Re-included, no guard.
#include "kvc/simd/math-inl.hpp"

#include "kvc/kernels/product-inl.hpp"
#include "kvc/kernels/dense_product-inl.hpp"
#include "kvc/kernels/packed_product-inl.hpp"
#include "kvc/kernels/dense_codec-inl.hpp"
#include "kvc/kernels/packed_unit-inl.hpp"
#include "kvc/kernels/packed_strip-inl.hpp"
#include "kvc/kernels/packed_token-inl.hpp"
#include "kvc/kernels/packed_encode-inl.hpp"
#include "kvc/kernels/packed_decode-inl.hpp"
#include "kvc/kernels/softmax-inl.hpp"

namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

#define KVC_NAME_OF(target) #target
#define KVC_NAME(target) KVC_NAME_OF(target)

/// A constant: nothing of this target may run before dispatch chose it.
inline constexpr Table KernelTable = {KVC_NAME(KVC_TARGET), dense_product, packed_product, dense_encode,
                                      dense_decode,         packed_encode, packed_decode,  softmax_update,
                                      scale_rows,           probabilities, softcap,        all_finite};

#undef KVC_NAME
#undef KVC_NAME_OF

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
