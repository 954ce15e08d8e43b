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

// The tables, each made of the one below it. They are constants: nothing of a target may run before dispatch chose it.
inline constexpr Table PortableTable = {.name = "portable",
                                        .dense_product = portable::dense_product,
                                        .packed_product = portable::exact_product,
                                        .dense_encode = portable::dense_encode,
                                        .dense_decode = portable::dense_decode,
                                        .packed_encode = portable::packed_encode,
                                        .packed_decode = portable::packed_decode,
                                        .softmax_update = portable::softmax_update,
                                        .scale_rows = portable::scale_rows,
                                        .exponentials = portable::exponentials,
                                        .column_maxima = portable::column_maxima,
                                        .softcap = portable::softcap,
                                        .all_within = portable::all_within};

/// `table` with the packed products of a level that multiplies integers.
constexpr Table with_integers(Table table, const char* name, decltype(Table::packed_product) packed_product) {
  table.name = name;
  table.packed_product = packed_product;
  table.multiplies_integers = true;
  return table;
}

#if defined(__x86_64__)
inline constexpr Table Avx2Table = {.name = "avx2",
                                    .dense_product = avx2::dense_product,
                                    .packed_product = avx2::packed_product,
                                    .dense_encode = avx2::dense_encode,
                                    .dense_decode = avx2::dense_decode,
                                    .packed_encode = avx2::packed_encode,
                                    .packed_decode = avx2::packed_decode,
                                    .softmax_update = avx2::softmax_update,
                                    .scale_rows = avx2::scale_rows,
                                    .exponentials = avx2::exponentials,
                                    .column_maxima = avx2::column_maxima,
                                    .softcap = avx2::softcap,
                                    .all_within = avx2::all_within,
                                    .multiplies_integers = true};

/// What is bound by memory, or by steps that gain nothing from wider registers, stays AVX2's.
constexpr Table avx512_table() {
  Table table = with_integers(Avx2Table, "avx512", avx512::packed_product);
  table.dense_product = avx512::dense_product;
  table.packed_encode = avx512::packed_encode;
  table.packed_decode = avx512::packed_decode;
  table.softmax_update = avx512::softmax_update;
  table.scale_rows = avx512::scale_rows;
  return table;
}
inline constexpr Table Avx512Table = avx512_table();
inline constexpr Table Avx512VnniTable = with_integers(Avx512Table, "avx512vnni", avx512vnni::packed_product);

constexpr Table amx_table() {
  Table table = with_integers(Avx512VnniTable, "amx", amx::packed_product);
  table.enter = amx::enter;
  table.leave = amx::leave;
  return table;
}
inline constexpr Table AmxTable = amx_table();
#elif defined(__aarch64__)
inline constexpr Table NeonTable = {.name = "neon",
                                    .dense_product = neon::dense_product,
                                    .packed_product = neon::exact_product,
                                    .dense_encode = neon::dense_encode,
                                    .dense_decode = neon::dense_decode,
                                    .packed_encode = neon::packed_encode,
                                    .packed_decode = neon::packed_decode,
                                    .softmax_update = neon::softmax_update,
                                    .scale_rows = neon::scale_rows,
                                    .exponentials = neon::exponentials,
                                    .column_maxima = neon::column_maxima,
                                    .softcap = neon::softcap,
                                    .all_within = neon::all_within};
inline constexpr Table NeonDotprodTable = with_integers(NeonTable, "neondotprod", neondotprod::packed_product);
#endif

/// The table of a level that this architecture has; the portable one otherwise.
inline const Table& compiled_table(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2: return Avx2Table;
    case Isa::avx512: return Avx512Table;
    case Isa::avx512vnni: return Avx512VnniTable;
    case Isa::amx: return AmxTable;
#elif defined(__aarch64__)
    case Isa::neon: return NeonTable;
    case Isa::neondotprod: return NeonDotprodTable;
#endif
    default: return PortableTable;
  }
}

}  // namespace kvc::kernels
