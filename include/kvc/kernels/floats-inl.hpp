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
