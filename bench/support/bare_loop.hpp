#pragma once
#include <cstddef>

#include "kvc/simd/isa.hpp"

namespace bench {

/// How a format's elements become factors.
enum class Operand {
  f32,
  half,     ///< f16 or bf16, widened
  codes,    ///< of `bits` bits, converted to floats
  integers  ///< of `bits` bits, multiplied in integers
};

struct BareLoop {
  Operand operand = Operand::f32;
  unsigned bits = 32;
  bool bfloat = false;
  std::size_t rows = 1;  ///< multiplications per element: query heads of the group, times int8 parts
  bool shorts = false;   ///< integers: coefficients of 16 bits whole instead of parts
};

/// Elements per second that one core unpacks and multiplies for all rows when the data lie in its first-level cache and there is
/// nothing else to do: no scales, no softmax, no memory. Measured now, the best of several runs. 0: there is no such loop.
double bare_loop_rate(kvc::Isa isa, const BareLoop& loop);

}  // namespace bench
