// Products in integers, in order of dependence. Re-included, no guard.
#include "kvc/kernels/steps-inl.hpp"

#include "kvc/kernels/integer/block-inl.hpp"
#include "kvc/kernels/integer/batch-inl.hpp"
#include "kvc/kernels/integer/product-inl.hpp"
#include "kvc/kernels/integer/packed_product-inl.hpp"
