// Products of group-quantized blocks in floating point. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline void fill_from_packed(const FloatSource& source, const Area& area, float* floats, std::size_t stride) {
  // What follows the last lane of the last tile is multiplied too, and thrown away.
  for (std::size_t lane = area.lanes; lane % TileLanes != 0; ++lane)
    for (std::size_t d = 0; d < area.depth_count; ++d) floats[d * stride + lane] = 0;
  packed_decode(*static_cast<const PackedLayout*>(source.layout), source.block, area, {floats, stride, 1});
}

inline void exact_product(const PackedLayout& layout, const void* block, const Area& area,
                          const Coefficients& coefficients, const Results& results) {
  staged_product({&layout, block, fill_from_packed}, area, coefficients, results);
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
