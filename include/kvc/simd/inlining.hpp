#pragma once
#include "kvc/abi.hpp"

/// Operations of the facade must vanish into the kernel: vector arguments may not cross a real call.
#define KVC_ALWAYS_INLINE inline __attribute__((always_inline))

/// The same for a lambda: written between its parameters and its body.
#define KVC_LAMBDA_INLINE __attribute__((always_inline))

/// Loops over arrays of vectors must unroll fully, or the arrays live in memory instead of registers.
#if defined(__clang__)
#define KVC_UNROLL _Pragma("clang loop unroll(full)")
#define KVC_UNROLL_SOME _Pragma("clang loop unroll_count(4)")
#else
#define KVC_UNROLL _Pragma("GCC unroll 64")
#define KVC_UNROLL_SOME _Pragma("GCC unroll 4")
#endif
