#pragma once
#include <span>

#include "kvc/compiled.hpp"
#include "kvc/views.hpp"

namespace kvc::inline KVC_ABI {

// Products of matrices of floats for policies that fit something, in the kernels of the instruction set that the machine has. Sums run
// in an order that depends on the shapes alone. The functions allocate while they work, and throw what allocation throws.

/// out [a.count, b.dim] = a [a.count, a.dim] * b [a.dim, b.dim].
KVC_FORWARD void multiply(ConstRows a, ConstRows b, Rows<float> out);
/// out [a.count, b.count] = a [a.count, a.dim] * b [b.count, a.dim] transposed: the product of every row of `a` with every row
/// of `b`.
KVC_FORWARD void multiply_transposed(ConstRows a, ConstRows b, Rows<float> out);
/// out [a.count, a.count] = a * a transposed, at half the work; out is symmetric to the bit.
KVC_FORWARD void gram(ConstRows a, Rows<float> out);
/// Every number becomes its exponential.
KVC_FORWARD void exponentiate(std::span<float> numbers);
/// The logarithm of the sum of the numbers' exponentials. Every number becomes exp(number - the largest), and `sum` the sum of
/// those; the softmax of the numbers is each of them divided by `sum`.
KVC_FORWARD float log_sum_exp(std::span<float> numbers, float& sum);

}  // namespace kvc::inline KVC_ABI

#if !defined(KVC_COMPILED)
#include "kvc/kernels/matrix.hpp"
#endif
