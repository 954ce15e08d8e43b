// The table of a level that only adds integer products to the kernels below it. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline void packed_product_in_integers(const PackedLayout& layout, const void* block, const Window& window,
                                       const Coefficients& coefficients, const Results& results) {
  if (coefficients.arithmetic == Arithmetic::exact || window.p_count == 0)
    return packed_product(layout, block, window, coefficients, results);
  integer_product(layout, block, window, coefficients, results, integer_functions(layout.bits));
}

constexpr Table with_integer_products(Table table, const char* name, decltype(Table::packed_product) product) {
  table.name = name;
  table.packed_product = product;
  table.multiplies_integers = true;
  return table;
}

inline constexpr Table KernelTable = with_integer_products(KernelTableBelow, LevelName, packed_product_in_integers);

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
