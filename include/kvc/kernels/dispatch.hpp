#pragma once
#include "kvc/compiled.hpp"
#include "kvc/kernels/table.hpp"
#include "kvc/simd/isa.hpp"

namespace kvc::inline KVC_ABI::kernels {

/// The kernels of one level. Throws Error(incompatible) where the machine lacks it.
KVC_FORWARD const Table& table(Isa isa);
/// The kernels of current_isa().
KVC_FORWARD const Table& active();
/// The same of the kernels over codes.
KVC_FORWARD const PackedTable& packed_table(Isa isa);
KVC_FORWARD const PackedTable& active_packed();

}  // namespace kvc::kernels

#if !defined(KVC_COMPILED)
#include "kvc/kernels/implementation.hpp"
#endif

namespace kvc::inline KVC_ABI::kernels {

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
