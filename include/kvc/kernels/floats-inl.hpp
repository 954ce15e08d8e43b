// All kernels of one target but products in integers, in order of dependence. Re-included, no guard.
#include "kvc/simd/math-inl.hpp"

#include "kvc/kernels/dense/product-inl.hpp"
#include "kvc/kernels/dense/convert-inl.hpp"
#include "kvc/kernels/packed/metadata-inl.hpp"
#include "kvc/kernels/packed/decode-inl.hpp"
#include "kvc/kernels/packed/product-inl.hpp"
#include "kvc/kernels/packed/encode_units-inl.hpp"
#include "kvc/kernels/packed/encode_strip-inl.hpp"
#include "kvc/kernels/packed/encode_strips-inl.hpp"
#include "kvc/kernels/packed/encode_tokens-inl.hpp"
#include "kvc/kernels/packed/encode-inl.hpp"
#include "kvc/kernels/softmax-inl.hpp"

namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// The kernels above as a table, which levels that compute some of it otherwise then change.
constexpr Table own_table(const char* name) {
  return {.name = name,
          .dense_product = dense_product,
          .dense_encode = dense_encode,
          .dense_decode = dense_decode,
          .softmax_update = softmax_update,
          .scale_rows = scale_rows,
          .exponentials = exponentials,
          .column_maxima = column_maxima,
          .softcap = softcap,
          .all_within = all_within};
}
constexpr PackedTable own_packed_table() {
  return {.product = exact_product, .encode = packed_encode, .decode = packed_decode};
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
