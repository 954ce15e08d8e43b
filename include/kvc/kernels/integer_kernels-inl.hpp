// The kernels of a target with integer operations, and the table of its level. Re-included, no guard.
#include "kvc/kernels/steps-inl.hpp"

#include "kvc/kernels/integer_block-inl.hpp"
#include "kvc/kernels/integer_batch-inl.hpp"
#include "kvc/kernels/integer_product-inl.hpp"
#include "kvc/kernels/integer_table-inl.hpp"
