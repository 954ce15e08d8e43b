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

#else

/// The kernels of one level; Error(incompatible) where the machine lacks it.
inline const Table& table(Isa isa) {
  if (!is_available(isa)) fail(ErrorCode::incompatible, std::string("kernels: this machine has no ") + to_string(isa));
  return compiled_table(isa);
}

/// The kernels of current_isa(): one relaxed load and a branch.
inline const Table& active() {
  return compiled_table(current_isa());
}

#endif

/// One thread's pass over rows of a head with the kernels of current_isa(): while it lives, they keep what they prepared.
class Pass {
 public:
  Pass() : table_(active()) {
    if (table_.begin_pass) table_.begin_pass();
  }
  ~Pass() {
    if (table_.end_pass) table_.end_pass();
  }
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;

 private:
  const Table& table_;
};

}  // namespace kvc::kernels
