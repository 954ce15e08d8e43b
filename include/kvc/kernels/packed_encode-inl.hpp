// Quantizing the window of a block: token by token, in strips, or a unit of dwords at a time. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline void packed_encode(const PackedLayout& layout, void* block, const Window& window,
                          const ConstFloatMatrix& source) {
  const MetadataView view(layout, block);
  std::uint32_t* codes = static_cast<std::uint32_t*>(block);
  if (!encode_tokens(view, codes, window, source)) encode_strips(view, codes, window, source);
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
