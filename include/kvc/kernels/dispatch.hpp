#pragma once
#include "kvc/kernels/table.hpp"
#include "kvc/simd/isa.hpp"

#if !defined(KVC_COMPILED)
#include "kvc/kernels/all_targets.hpp"
#endif

namespace kvc::inline KVC_ABI::kernels {

#if defined(KVC_COMPILED)

/// The kernels of one level; Error(incompatible) where the machine lacks it. Defined in kvc/implementation.hpp.
const Table& table(Isa isa);
/// The kernels of current_isa().
const Table& active();
/// The same of the kernels over codes.
const PackedTable& packed_table(Isa isa);
const PackedTable& active_packed();

#else

/// The kernels of one level; Error(incompatible) where the machine lacks it.
inline const Table& table(Isa isa) {
  if (!is_available(isa)) fail(ErrorCode::incompatible, {"kernels: this machine has no ", to_string(isa)});
  return compiled_table(isa);
}

/// The kernels of current_isa(): one relaxed load and a branch.
inline const Table& active() {
  return compiled_table(current_isa());
}

/// The same of the kernels over codes.
inline const PackedTable& packed_table(Isa isa) {
  if (!is_available(isa)) fail(ErrorCode::incompatible, std::string("kernels: this machine has no ") + to_string(isa));
  return compiled_packed_table(isa);
}
inline const PackedTable& active_packed() {
  return compiled_packed_table(current_isa());
}

#endif

/// While one lives, the kernels of current_isa() keep on this thread what they prepared: attention opens one around the products
/// of a head.
class Scope {
 public:
  Scope() : table_(active()) {
    if (table_.enter) table_.enter();
  }
  ~Scope() {
    if (table_.leave) table_.leave();
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  const Table& table_;
};

}  // namespace kvc::kernels
