// Products of group-quantized blocks in the arithmetic that the coefficients ask for. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline void packed_product(const PackedLayout& layout, const void* block, const Area& area,
                           const Coefficients& coefficients, const Results& results) {
  if (coefficients.arithmetic == Arithmetic::exact || area.depth_count == 0)
    return exact_product(layout, block, area, coefficients, results);
  integer_product(layout, block, area, coefficients, results, integer_functions(layout.bits));
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
