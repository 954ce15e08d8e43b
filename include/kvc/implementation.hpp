#pragma once
/// Defines the kernels and the cache's inside for builds with KVC_COMPILED: include this in exactly one .cpp file of
/// the program. All other files then compile without intrinsics, kernels and storage.
#if !defined(KVC_COMPILED)
#error "kvc/implementation.hpp: define KVC_COMPILED for the whole program (or do not include this file)"
#endif

#include "kvc/cache/implementation.hpp"
#include "kvc/codec/implementation.hpp"
#include "kvc/kernels/all_targets.hpp"
#include "kvc/kernels/dispatch.hpp"
#include "kvc/named/implementation.hpp"

namespace kvc::inline KVC_ABI::kernels {

const Table& table(Isa isa) {
  if (!is_available(isa)) fail(ErrorCode::incompatible, {"kernels: this machine has no ", to_string(isa)});
  return compiled_table(isa);
}

const Table& active() {
  return compiled_table(current_isa());
}

const PackedTable& packed_table(Isa isa) {
  if (!is_available(isa)) fail(ErrorCode::incompatible, std::string("kernels: this machine has no ") + to_string(isa));
  return compiled_packed_table(isa);
}

const PackedTable& active_packed() {
  return compiled_packed_table(current_isa());
}

}  // namespace kvc::kernels
