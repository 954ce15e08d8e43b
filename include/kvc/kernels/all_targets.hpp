#pragma once
// The kernels of every target that this architecture can have, each compiled for its own instruction set in a region,
// so that a plain -O2 build carries them all. Rules for regions:
//   * Every header comes before the first region: an #include inside would compile foreign code for the target.
//   * Constants only, no initialiser that runs: it would run before dispatch, on machines that lack the instructions.
//   * Regions, not function attributes: lambdas do not inherit an attribute.
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kvc/kernels/table.hpp"
#include "kvc/simd/inlining.hpp"
#include "kvc/simd/isa.hpp"

#if !defined(__clang__)
#pragma GCC diagnostic push
// g++ 12 sees its own intrinsics' deliberately undefined operands as uninitialised once they are inlined (PR 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define KVC_TARGET portable
#include "kvc/simd/ops_portable-inl.hpp"
#include "kvc/kernels/table-inl.hpp"
#undef KVC_TARGET

#if defined(__aarch64__)
#define KVC_TARGET neon
#include "kvc/simd/ops_neon-inl.hpp"
#include "kvc/kernels/table-inl.hpp"
#undef KVC_TARGET

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define KVC_TARGET neondotprod
#include "kvc/simd/ops_neondotprod-inl.hpp"
#include "kvc/kernels/integer_kernels-inl.hpp"
#undef KVC_TARGET
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif
#define KVC_TARGET avx2
#include "kvc/simd/ops_avx2-inl.hpp"
#include "kvc/kernels/table-inl.hpp"
#undef KVC_TARGET
#define KVC_TARGET avx2_integer
#include "kvc/simd/ops_avx2_integer-inl.hpp"
#include "kvc/kernels/integer_kernels-inl.hpp"
#undef KVC_TARGET
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#endif
#define KVC_TARGET avx512
#include "kvc/simd/ops_avx512-inl.hpp"
#include "kvc/kernels/table-inl.hpp"
#undef KVC_TARGET
#define KVC_TARGET avx512_integer
#include "kvc/simd/ops_avx512_integer-inl.hpp"
#include "kvc/kernels/integer_table-inl.hpp"
#undef KVC_TARGET
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(                                                                          \
    __attribute__((target("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#endif
#define KVC_TARGET avx512vnni
#include "kvc/simd/ops_avx512vnni-inl.hpp"
#include "kvc/kernels/integer_kernels-inl.hpp"
#undef KVC_TARGET
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(                                                                                          \
    __attribute__((target("amx-tile,amx-int8,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-int8,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#endif
#define KVC_TARGET amx
#include "kvc/simd/ops_amx-inl.hpp"
#include "kvc/kernels/steps-inl.hpp"
#include "kvc/kernels/tile_block-inl.hpp"
#undef KVC_TARGET
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // x86-64

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace kvc::inline KVC_ABI::kernels {
/// The table of a level that this architecture has; the portable one otherwise.
inline const Table& compiled_table(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2: return avx2_integer::KernelTable;
    case Isa::avx512: return avx512_integer::KernelTable;
    case Isa::avx512vnni: return avx512vnni::KernelTable;
    case Isa::amx: return amx::KernelTable;
#elif defined(__aarch64__)
    case Isa::neon: return neon::KernelTable;
    case Isa::neondotprod: return neondotprod::KernelTable;
#endif
    default: return portable::KernelTable;
  }
}

}  // namespace kvc::kernels
