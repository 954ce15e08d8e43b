#pragma once
#include <atomic>
#include <cstdlib>
#include <initializer_list>
#include <string_view>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kvc/error.hpp"
#include "kvc/simd/inlining.hpp"

namespace kvc::process {
/// The level in use, or -1 before the first question. One for the process, whatever flags its parts were built with, so it
/// stands outside KVC_ABI: it is a variable, and no instruction of it can be the wrong machine's.
inline std::atomic<int> isa_in_use{-1};
}  // namespace kvc::process

namespace kvc::inline KVC_ABI {

/// Instruction sets that kernels exist for.
enum class Isa : int {
  portable,     ///< whatever the command line allows; runs everywhere
  avx2,         ///< AVX2, FMA, F16C
  avx512,       ///< AVX-512 F, BW, DQ, VL
  avx512vnni,   ///< and VNNI: dot products of codes in integers
  amx,          ///< and AMX int8: the same in matrix tiles, where the operating system permits them
  neon,         ///< AArch64 Advanced SIMD
  neondotprod,  ///< and dot products of bytes (from Armv8.2 on)
};

inline constexpr Isa AllIsas[] = {Isa::portable, Isa::avx2, Isa::avx512,     Isa::avx512vnni,
                                  Isa::amx,      Isa::neon, Isa::neondotprod};

constexpr const char* to_string(Isa isa) {
  constexpr const char* Names[] = {"portable", "avx2", "avx512", "avx512vnni", "amx", "neon", "neondotprod"};
  return Names[static_cast<int>(isa)];
}

/// The level that a level adds to: what runs the kernels of one runs those of the other. The portable level adds to none.
constexpr Isa below(Isa isa) {
  switch (isa) {
    case Isa::avx512: return Isa::avx2;
    case Isa::avx512vnni: return Isa::avx512;
    case Isa::amx: return Isa::avx512vnni;
    case Isa::neondotprod: return Isa::neon;
    default: return Isa::portable;
  }
}
/// Whether a machine of level `isa` has the instructions of level `part`.
constexpr bool contains(Isa isa, Isa part) {
  while (isa != part && isa != Isa::portable) isa = below(isa);
  return isa == part;
}

/// The level of that name; throws Error(unknown_name) that lists the levels.
inline Isa parse_isa(std::string_view name) {
  for (Isa isa : AllIsas)
    if (name == to_string(isa)) return isa;
  fail(ErrorCode::unknown_name,
       {"KVC_ISA: \"", name,
        "\" is no instruction set; expected portable, avx2, avx512, avx512vnni, amx, neon or neondotprod"});
}

namespace machine {

/// The highest level that this build has kernels for.
#if defined(__x86_64__)
inline constexpr Isa Highest = Isa::amx;
#elif defined(__aarch64__)
inline constexpr Isa Highest = Isa::neondotprod;
#else
inline constexpr Isa Highest = Isa::portable;
#endif

#if defined(__x86_64__)
/// The highest level that both the processor and the operating system (saved registers, XCR0) support. AMX also needs a
/// permission.
inline Isa detect_isa() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  auto has = [](unsigned word, std::initializer_list<unsigned> bits) {
    for (unsigned bit : bits)
      if (!(word >> bit & 1u)) return false;
    return true;
  };
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !has(ecx, {12, 27, 28, 29}))
    return Isa::portable;  // fma osxsave avx f16c
  unsigned xcr_low = 0, xcr_high = 0;
  __asm__ volatile("xgetbv" : "=a"(xcr_low), "=d"(xcr_high) : "c"(0));
  if (!has(xcr_low, {1, 2})) return Isa::portable;                                                     // xmm ymm
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !has(ebx, {3, 5, 8})) return Isa::portable;  // bmi avx2 bmi2
  if (!has(xcr_low, {5, 6, 7}) || !has(ebx, {16, 17, 30, 31})) return Isa::avx2;  // opmask zmm; F DQ BW VL
  if (!has(ecx, {11})) return Isa::avx512;
  return has(edx, {24, 25}) && has(xcr_low, {17, 18}) ? Isa::amx : Isa::avx512vnni;  // TILE and INT8; their states
}
#elif defined(__aarch64__)
inline Isa detect_isa() {
#if defined(__ARM_FEATURE_DOTPROD)
  return Isa::neondotprod;
#elif defined(__linux__) && defined(HWCAP_ASIMDDP)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? Isa::neondotprod : Isa::neon;
#else
  return Isa::neon;
#endif
}
#else
inline Isa detect_isa() {
  return Isa::portable;
}
#endif

inline Isa isa() {
  static const Isa detected = detect_isa();
  return detected;
}

/// Whether the operating system lets this process use AMX tiles. It is asked once, when the first question is about that level,
/// because the answer binds the process: with the permission, signal stacks must be large enough to save tiles. Old
/// kernels refuse, and newer ones where a thread's signal stack is too small.
inline bool permits_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long RequestPermission = 0x1023, TileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool permitted = syscall(SYS_arch_prctl, RequestPermission, TileData) == 0;
  return permitted;
#else
  return false;
#endif
}

}  // namespace machine

/// Whether this machine can run the kernels of a level. Asks for the permission to use AMX if the level is that one.
inline bool is_available(Isa isa) {
  return contains(machine::isa(), isa) && (isa != Isa::amx || machine::permits_tiles());
}

/// Every level of this machine, lowest first; KVC_ISA has no influence.
inline std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (Isa isa : AllIsas)
    if (is_available(isa)) isas.push_back(isa);
  return isas;
}

/// The highest level of this machine that the environment variable KVC_ISA, where set, does not exclude. KVC_ISA names
/// the highest level wanted; throws Error(unknown_name) when it names none, and Error(incompatible) when it names one of
/// another kind of processor, which would exclude nothing.
inline Isa best_isa() {
  const char* named = std::getenv("KVC_ISA");
  const Isa cap = named && *named ? parse_isa(named) : machine::Highest;
  if (!contains(machine::Highest, cap))
    fail(ErrorCode::incompatible,
         {"KVC_ISA: ", to_string(cap), " is an instruction set of other processors; on this one the highest is ",
          to_string(machine::isa())});
  Isa isa = machine::isa();
  while (!contains(cap, isa) || !is_available(isa)) isa = below(isa);
  return isa;
}

/// The level whose kernels run now: best_isa() of the first call, or what a ScopedIsa set.
inline Isa current_isa() {
  const int isa = process::isa_in_use.load(std::memory_order_relaxed);
  if (isa >= 0) return static_cast<Isa>(isa);
  const Isa best = best_isa();
  process::isa_in_use.store(static_cast<int>(best), std::memory_order_relaxed);
  return best;
}

/// For tests: the whole process uses one level while this lives. Throws Error(incompatible) where the machine lacks it.
class ScopedIsa {
 public:
  explicit ScopedIsa(Isa isa) : before_(process::isa_in_use.load(std::memory_order_relaxed)) {
    if (!is_available(isa))
      fail(ErrorCode::incompatible,
           {"ScopedIsa: this machine has no ", to_string(isa), ", only up to ", to_string(machine::isa())});
    process::isa_in_use.store(static_cast<int>(isa), std::memory_order_relaxed);
  }
  ~ScopedIsa() { process::isa_in_use.store(before_, std::memory_order_relaxed); }
  ScopedIsa(const ScopedIsa&) = delete;
  ScopedIsa& operator=(const ScopedIsa&) = delete;

 private:
  int before_;
};

}  // namespace kvc
