#include "linear_kernels.hpp"

#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kvc/half.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ENGINE_INLINE inline __attribute__((always_inline))

#define ENGINE_TARGET portable
#define ENGINE_TARGET_NAME "portable"
#include "linear_ops_portable-inl.hpp"

#include "linear_kernels-inl.hpp"
#undef ENGINE_TARGET
#undef ENGINE_TARGET_NAME

#if defined(__x86_64__)

// A plain -O2 build carries all three: the regions below are compiled for more than the command line allows, and the
// table is chosen at run time.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define ENGINE_TARGET avx2
#define ENGINE_TARGET_NAME "AVX2"
#include "linear_ops_avx2-inl.hpp"

#include "linear_kernels-inl.hpp"
#undef ENGINE_TARGET
#undef ENGINE_TARGET_NAME
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12 reports its own intrinsics (GCC PR 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define ENGINE_TARGET avx512
#define ENGINE_TARGET_NAME "AVX-512"
#include "linear_ops_avx512-inl.hpp"

#include "linear_kernels-inl.hpp"
#undef ENGINE_TARGET
#undef ENGINE_TARGET_NAME
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

#endif

namespace engine {
namespace {

struct Available {
  std::array<const LinearKernels*, 3> tables{};
  std::size_t count = 0;
};

Available find_available() {
  Available available;
  auto add = [&](const LinearKernels& table) { available.tables[available.count++] = &table; };
#if defined(__x86_64__)
  // Every processor with AVX2 and FMA has F16C, which clang's builtin cannot be asked about.
  const bool avx2_runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512_runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2_runs && avx512_runs) add(avx512::Kernels);
  if (avx2_runs) add(avx2::Kernels);
#endif
  add(portable::Kernels);
  return available;
}

std::atomic<const LinearKernels*> chosen{nullptr};

}  // namespace

std::span<const LinearKernels* const> available_linear_kernels() {
  static const Available available = find_available();
  return {available.tables.data(), available.count};
}

const LinearKernels& linear_kernels() {
  const LinearKernels* kernels = chosen.load(std::memory_order_relaxed);
  return kernels ? *kernels : *available_linear_kernels().front();
}

void use_linear_kernels(const LinearKernels* kernels) {
  chosen = kernels;
}

}  // namespace engine
