// Quantizing an area of a block. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// With the strip encoders of this target or of a wider one.
inline void encode_with(const StripEncoders& encoders, const PackedLayout& layout, void* block, const Area& area,
                        const ConstFloatMatrix& source) {
  const MetadataTarget view(layout, block);
  std::uint32_t* codes = static_cast<std::uint32_t*>(block);
  if (!encode_tokens(view, codes, area, source)) encode_strips(view, codes, area, source, encoders);
}

inline void packed_encode(const PackedLayout& layout, void* block, const Area& area, const ConstFloatMatrix& source) {
  if constexpr (Specialised)
    encode_with(OwnStripEncoders, layout, block, area, source);
  else
    encode_units(MetadataTarget(layout, block), static_cast<std::uint32_t*>(block), area, source);
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
