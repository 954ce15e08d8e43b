#pragma once

/// KVC_ABI: an inline namespace named after the instruction sets that the command line turned on. Translation units
/// built with different -m flags then never share a kernel symbol; if they did, the linker would keep one copy, and a
/// copy built for AVX-512 could run on a machine without it.
#if defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define KVC_ABI_LEVEL v4
#elif defined(__AVX512F__)
#define KVC_ABI_LEVEL avx512f
#elif defined(__AVX2__)
#define KVC_ABI_LEVEL avx2
#elif defined(__AVX__)
#define KVC_ABI_LEVEL avx
#elif defined(__SSE4_2__)
#define KVC_ABI_LEVEL sse42
#elif defined(__SSE4_1__) || defined(__SSSE3__) || defined(__SSE3__)
#define KVC_ABI_LEVEL sse3
#elif defined(__ARM_FEATURE_SVE)
#define KVC_ABI_LEVEL sve
#elif defined(__ARM_FEATURE_DOTPROD)
#define KVC_ABI_LEVEL dotprod
#else
#define KVC_ABI_LEVEL base
#endif

#if defined(__FMA__) && defined(__BMI2__)
#define KVC_ABI_EXTRA _fma_bmi
#elif defined(__FMA__)
#define KVC_ABI_EXTRA _fma
#elif defined(__BMI2__)
#define KVC_ABI_EXTRA _bmi
#else
#define KVC_ABI_EXTRA
#endif

#define KVC_PASTE_TOKENS(a, b, c) a##b##c
#define KVC_PASTE(a, b, c) KVC_PASTE_TOKENS(a, b, c)
#define KVC_ABI KVC_PASTE(abi_, KVC_ABI_LEVEL, KVC_ABI_EXTRA)

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
