#pragma once
#include "kvc/simd/isa.hpp"

namespace bench {

/// f32 multiply-adds per second and core that the instruction set can reach: a loop of nothing else over registers, the best
/// of several runs now. 0 where the set has no such loop here.
double multiply_add_peak(kvc::Isa isa);

}  // namespace bench
