// Quantizing an area of a block. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline void packed_encode(const PackedLayout& layout, void* block, const Area& area, const ConstFloatMatrix& source) {
  const MetadataTarget view(layout, block);
  std::uint32_t* codes = static_cast<std::uint32_t*>(block);
  if constexpr (Specialised) {
    if (!encode_tokens(view, codes, area, source)) encode_strips(view, codes, area, source);
  } else {
    encode_units(view, codes, area, source);
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
