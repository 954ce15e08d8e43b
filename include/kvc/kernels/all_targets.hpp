#pragma once
// The kernels of every target that this architecture can have, each compiled for its own instruction set in a region,
// so that a plain -O2 build carries them all. Rules for regions:
//   * Every header comes before the first region: an #include inside would compile foreign code for the target.
//   * Constants only, no initialiser that runs: it would run before dispatch, on machines that lack the instructions.
//   * Regions, not function attributes: lambdas do not inherit an attribute.
#include <bit>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kvc/assert.hpp"
#include "kvc/kernels/basics.hpp"
#include "kvc/kernels/packed/group_range.hpp"
#include "kvc/kernels/table.hpp"
#include "kvc/simd/inlining.hpp"
#include "kvc/simd/isa.hpp"

#define KVC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define KVC_BEGIN_REGION(features) \
  KVC_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define KVC_END_REGION KVC_PRAGMA(clang attribute pop)
#else
#define KVC_BEGIN_REGION(features) KVC_PRAGMA(GCC push_options) KVC_PRAGMA(GCC target(features))
#define KVC_END_REGION KVC_PRAGMA(GCC pop_options)
#pragma GCC diagnostic push
// g++ 12 sees its own intrinsics' deliberately undefined operands as uninitialised once they are inlined (PR 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define KVC_TARGET portable
#include "kvc/simd/ops_portable-inl.hpp"
#include "kvc/kernels/floats-inl.hpp"
#undef KVC_TARGET

#if defined(__aarch64__)
#define KVC_TARGET neon
#include "kvc/simd/ops_neon-inl.hpp"
#include "kvc/kernels/floats-inl.hpp"
#undef KVC_TARGET

#if defined(__clang__)
KVC_BEGIN_REGION("dotprod")
#else
KVC_BEGIN_REGION("arch=armv8.2-a+dotprod")
#endif
#define KVC_TARGET neondotprod
#include "kvc/simd/integers_neondotprod-inl.hpp"
#include "kvc/kernels/integers-inl.hpp"
#undef KVC_TARGET
KVC_END_REGION
#endif

#if defined(__x86_64__)
KVC_BEGIN_REGION("avx2,fma,f16c,bmi,bmi2")
#define KVC_TARGET avx2
#include "kvc/simd/ops_avx2-inl.hpp"
#include "kvc/kernels/floats-inl.hpp"
#include "kvc/simd/integers_avx2-inl.hpp"
#include "kvc/kernels/integers-inl.hpp"
#undef KVC_TARGET
KVC_END_REGION

KVC_BEGIN_REGION("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#define KVC_TARGET avx512
#include "kvc/simd/ops_avx512-inl.hpp"
#include "kvc/kernels/wide_floats-inl.hpp"
#undef KVC_TARGET
KVC_END_REGION

KVC_BEGIN_REGION("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#define KVC_TARGET avx512vnni
#include "kvc/simd/integers_avx512vnni-inl.hpp"
#include "kvc/kernels/integers-inl.hpp"
#undef KVC_TARGET
KVC_END_REGION

KVC_BEGIN_REGION("amx-tile,amx-int8,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#define KVC_TARGET amx
#include "kvc/simd/tiles_amx-inl.hpp"
#include "kvc/kernels/steps-inl.hpp"
#include "kvc/kernels/tiles/product-inl.hpp"
#undef KVC_TARGET
KVC_END_REGION

#endif  // x86-64

#undef KVC_BEGIN_REGION
#undef KVC_END_REGION
#undef KVC_PRAGMA
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace kvc::inline KVC_ABI::kernels {

/// `table` with the changes of a higher level.
template <class Kernels, class Change>
constexpr Kernels changed(Kernels table, Change change) {
  change(table);
  return table;
}

// The tables, each made of the one below it. They are constants, because nothing of a target may run before dispatch chose it;
// and they are local, so that a program that never asks for a table compiles none of its kernels.

/// The table of a level that this architecture has; the portable one otherwise.
inline const Table& compiled_table(Isa isa) {
  static constexpr Table Portable = {.name = "portable",
                                     .dense_product = portable::dense_product,
                                     .dense_encode = portable::dense_encode,
                                     .dense_decode = portable::dense_decode,
                                     .softmax_update = portable::softmax_update,
                                     .scale_rows = portable::scale_rows,
                                     .exponentials = portable::exponentials,
                                     .column_maxima = portable::column_maxima,
                                     .softcap = portable::softcap,
                                     .all_within = portable::all_within};
#if defined(__x86_64__)
  static constexpr Table Avx2 = {.name = "avx2",
                                 .dense_product = avx2::dense_product,
                                 .dense_encode = avx2::dense_encode,
                                 .dense_decode = avx2::dense_decode,
                                 .softmax_update = avx2::softmax_update,
                                 .scale_rows = avx2::scale_rows,
                                 .exponentials = avx2::exponentials,
                                 .column_maxima = avx2::column_maxima,
                                 .softcap = avx2::softcap,
                                 .all_within = avx2::all_within};
  // What is bound by memory, or by steps that gain nothing from wider registers, stays AVX2's.
  static constexpr Table Avx512 = changed(Avx2, [](Table& table) {
    table.name = "avx512";
    table.dense_product = avx512::dense_product;
    table.softmax_update = avx512::softmax_update;
    table.scale_rows = avx512::scale_rows;
  });
  static constexpr Table Avx512Vnni = changed(Avx512, [](Table& table) { table.name = "avx512vnni"; });
  static constexpr Table Amx = changed(Avx512Vnni, [](Table& table) {
    table.name = "amx";
    table.enter = amx::enter;
    table.leave = amx::leave;
  });
  switch (isa) {
    case Isa::avx2: return Avx2;
    case Isa::avx512: return Avx512;
    case Isa::avx512vnni: return Avx512Vnni;
    case Isa::amx: return Amx;
    default: return Portable;
  }
#elif defined(__aarch64__)
  static constexpr Table Neon = {.name = "neon",
                                 .dense_product = neon::dense_product,
                                 .dense_encode = neon::dense_encode,
                                 .dense_decode = neon::dense_decode,
                                 .softmax_update = neon::softmax_update,
                                 .scale_rows = neon::scale_rows,
                                 .exponentials = neon::exponentials,
                                 .column_maxima = neon::column_maxima,
                                 .softcap = neon::softcap,
                                 .all_within = neon::all_within};
  static constexpr Table NeonDotprod = changed(Neon, [](Table& table) { table.name = "neondotprod"; });
  switch (isa) {
    case Isa::neon: return Neon;
    case Isa::neondotprod: return NeonDotprod;
    default: return Portable;
  }
#else
  static_cast<void>(isa);
  return Portable;
#endif
}

/// The same of the kernels over codes.
inline const PackedTable& compiled_packed_table(Isa isa) {
  static constexpr PackedTable Portable = {
      .product = portable::exact_product, .encode = portable::packed_encode, .decode = portable::packed_decode};
#if defined(__x86_64__)
  static constexpr PackedTable Avx2 = {.product = avx2::packed_product,
                                       .encode = avx2::packed_encode,
                                       .decode = avx2::packed_decode,
                                       .multiplies_integers = true};
  static constexpr PackedTable Avx512 = {.product = avx512::packed_product,
                                         .encode = avx512::packed_encode,
                                         .decode = avx512::packed_decode,
                                         .multiplies_integers = true};
  static constexpr PackedTable Avx512Vnni =
      changed(Avx512, [](PackedTable& table) { table.product = avx512vnni::packed_product; });
  static constexpr PackedTable Amx = changed(Avx512Vnni, [](PackedTable& table) { table.product = amx::packed_product; });
  switch (isa) {
    case Isa::avx2: return Avx2;
    case Isa::avx512: return Avx512;
    case Isa::avx512vnni: return Avx512Vnni;
    case Isa::amx: return Amx;
    default: return Portable;
  }
#elif defined(__aarch64__)
  static constexpr PackedTable Neon = {
      .product = neon::exact_product, .encode = neon::packed_encode, .decode = neon::packed_decode};
  static constexpr PackedTable NeonDotprod = changed(Neon, [](PackedTable& table) {
    table.product = neondotprod::packed_product;
    table.multiplies_integers = true;
  });
  switch (isa) {
    case Isa::neon: return Neon;
    case Isa::neondotprod: return NeonDotprod;
    default: return Portable;
  }
#else
  static_cast<void>(isa);
  return Portable;
#endif
}

}  // namespace kvc::kernels
