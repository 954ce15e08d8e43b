#pragma once
/// The kernels of all levels, and the choice among them: in a header-only build kvc/kernels/dispatch.hpp includes this, with
/// KVC_COMPILED one file of the program does, through kvc/implementation.hpp.
#include "kvc/compiled.hpp"
#include "kvc/kernels/all_targets.hpp"
#include "kvc/kernels/matrix.hpp"

namespace kvc::inline KVC_ABI::kernels {

KVC_FORWARD const Table& table(Isa isa) {
  if (!is_available(isa)) fail(ErrorCode::incompatible, {"kernels: this machine has no ", to_string(isa)});
  return compiled_table(isa);
}
KVC_FORWARD const Table& active() {
  return compiled_table(current_isa());
}
KVC_FORWARD const PackedTable& packed_table(Isa isa) {
  if (!is_available(isa)) fail(ErrorCode::incompatible, {"kernels: this machine has no ", to_string(isa)});
  return compiled_packed_table(isa);
}
KVC_FORWARD const PackedTable& active_packed() {
  return compiled_packed_table(current_isa());
}

}  // namespace kvc::kernels
