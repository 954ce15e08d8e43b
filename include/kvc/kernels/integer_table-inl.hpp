// The kernels of a level that only adds integer products to the level below it. Re-included, no guard.
#include "kvc/kernels/integer_block-inl.hpp"
#include "kvc/kernels/integer_product-inl.hpp"

namespace kvc::kernels {
inline namespace KVC_ABI {
namespace KVC_TARGET {

inline void packed_product_in_integers(const PackedLayout& layout, const void* block, const Window& window,
                                       const Coefficients& coefficients, const Results& results) {
  if (coefficients.arithmetic == Arithmetic::exact || window.p_count == 0)
    return packed_product(layout, block, window, coefficients, results);
  integer_product(layout, block, window, coefficients, results, integer_functions(layout.bits));
}

constexpr Table with_integer_products(Table table, const char* name, decltype(Table::packed_product) product) {
  table.name = name;
  table.packed_product = product;
  return table;
}

#define KVC_NAME_OF(target) #target
#define KVC_NAME(target) KVC_NAME_OF(target)
inline constexpr Table KernelTable =
    with_integer_products(KernelTableBelow, KVC_NAME(KVC_TARGET), packed_product_in_integers);
#undef KVC_NAME
#undef KVC_NAME_OF

}  // namespace KVC_TARGET
}  // namespace KVC_ABI
}  // namespace kvc::kernels
