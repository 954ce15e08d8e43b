#pragma once
/// The namespace that everything of the library lies in, `kvc::inline KVC_ABI`: its name holds the version, the instruction
/// sets that the command line turned on and whether exceptions are off, for example `v0_1_base` or `v0_1_avx2_fma_bmi`. Users never write it.
///
/// Files that were compiled with different -m flags then share no function of the library. If they did, the linker
/// would keep one copy of each inline function, and a copy with AVX instructions could run on a machine that lacks
/// them. Such files can be linked into one program as long as no kvc type passes between them; where one does, the
/// program fails to link, and the undefined symbol's name shows the two tags. Two versions of the library in one
/// program do not meet either.
///
/// What such files still share are the standard library's own templates over built-in types, as with any other code in
/// them: of std::vector<float>::resize the linker keeps the copy that it meets first. So link the files for the oldest
/// machine first.

// A missing file ends the compilation at its first line; #error would be followed by hundreds of lines about C++20 syntax.
#if __cplusplus < 202002L && !(defined(_MSVC_LANG) && _MSVC_LANG >= 202002L)
#include "kvc needs C++20 - compile with -std=c++20 or newer"
#endif
#if !defined(__GNUC__) && !defined(__clang__)
#include "kvc needs g++ 12, clang++ 14 or newer - its kernels use their vector extensions"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#include "kvc needs a little-endian machine - its blocks of codes are laid out for one"
#endif

#include "kvc/version.hpp"

#if defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define KVC_ABI_LEVEL avx512
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

// Files without exceptions report errors otherwise, so the functions that do must be their own.
#if defined(__cpp_exceptions)
#define KVC_ABI_ERRORS
#else
#define KVC_ABI_ERRORS _noexceptions
#endif

#define KVC_ABI_TOKENS(major, minor, level, extra, errors) v##major##_##minor##_##level##extra##errors
#define KVC_ABI_NAME(major, minor, level, extra, errors) KVC_ABI_TOKENS(major, minor, level, extra, errors)
#define KVC_ABI KVC_ABI_NAME(KVC_VERSION_MAJOR, KVC_VERSION_MINOR, KVC_ABI_LEVEL, KVC_ABI_EXTRA, KVC_ABI_ERRORS)
