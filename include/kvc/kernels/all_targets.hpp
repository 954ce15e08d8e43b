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
inline const Table& compiled_table([[maybe_unused]] Isa isa) {
  static constexpr Table Portable = portable::own_table("portable");
#if defined(__x86_64__)
  static constexpr Table Avx2 = avx2::own_table("avx2");
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
  if (isa == Isa::avx2) return Avx2;
  if (isa == Isa::avx512) return Avx512;
  if (isa == Isa::avx512vnni) return Avx512Vnni;
  if (isa == Isa::amx) return Amx;
#elif defined(__aarch64__)
  static constexpr Table Neon = neon::own_table("neon");
  static constexpr Table NeonDotprod = changed(Neon, [](Table& table) { table.name = "neondotprod"; });
  if (isa == Isa::neon) return Neon;
  if (isa == Isa::neondotprod) return NeonDotprod;
#endif
  return Portable;
}

/// The same of the kernels over codes.
inline const PackedTable& compiled_packed_table([[maybe_unused]] Isa isa) {
  static constexpr PackedTable Portable = portable::own_packed_table();
#if defined(__x86_64__)
  static constexpr PackedTable Avx2 = changed(avx2::own_packed_table(), [](PackedTable& table) {
    table.product = avx2::packed_product;
    table.multiplies_integers = true;
  });
  static constexpr PackedTable Avx512 = changed(Avx2, [](PackedTable& table) {
    table.product = avx512::packed_product;
    table.encode = avx512::packed_encode;
    table.decode = avx512::packed_decode;
  });
  static constexpr PackedTable Avx512Vnni =
      changed(Avx512, [](PackedTable& table) { table.product = avx512vnni::packed_product; });
  static constexpr PackedTable Amx = changed(Avx512Vnni, [](PackedTable& table) { table.product = amx::packed_product; });
  if (isa == Isa::avx2) return Avx2;
  if (isa == Isa::avx512) return Avx512;
  if (isa == Isa::avx512vnni) return Avx512Vnni;
  if (isa == Isa::amx) return Amx;
#elif defined(__aarch64__)
  static constexpr PackedTable Neon = neon::own_packed_table();
  static constexpr PackedTable NeonDotprod = changed(Neon, [](PackedTable& table) {
    table.product = neondotprod::packed_product;
    table.multiplies_integers = true;
  });
  if (isa == Isa::neon) return Neon;
  if (isa == Isa::neondotprod) return NeonDotprod;
#endif
  return Portable;
}

}  // namespace kvc::kernels
