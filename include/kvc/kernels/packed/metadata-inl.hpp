// Reading the scales and minima of group-quantized blocks. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// `Width` scales or minima from number `index` on, of which `count` exist; the others are zero.
KVC_ALWAYS_INLINE Vector load_metadata(const unsigned char* metadata, Scalar type, std::size_t index,
                                       std::size_t count) {
  const void* from = metadata + index * scalar_bytes(type);
  if (type == Scalar::f32) {
    const float* floats = static_cast<const float*>(from);
    return count >= Width ? load(floats) : load_partial(floats, count);
  }
  const std::uint16_t* halves = static_cast<const std::uint16_t*>(from);
  if (count >= Width) return load_half(halves);
  std::uint16_t rest[Width] = {};
  for (std::size_t i = 0; i < count; ++i) rest[i] = halves[i];
  return load_half(rest);
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
