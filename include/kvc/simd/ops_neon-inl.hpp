// The facade in AArch64 Advanced SIMD: four lanes. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

using Vector = float32x4_t;
using Words = uint32x4_t;
inline constexpr std::size_t Width = 4;
inline constexpr std::size_t Registers = 32;
inline constexpr bool Specialised = true;
namespace narrower = KVC_TARGET;
inline constexpr bool HasNarrowerTarget = false;

KVC_ALWAYS_INLINE Words words(std::uint32_t x) {
  return vdupq_n_u32(x);
}
KVC_ALWAYS_INLINE Words bits_of(Vector a) {
  return vreinterpretq_u32_f32(a);
}
KVC_ALWAYS_INLINE Vector float_of(Words a) {
  return vreinterpretq_f32_u32(a);
}

KVC_ALWAYS_INLINE Vector set(float x) {
  return vdupq_n_f32(x);
}
KVC_ALWAYS_INLINE Vector zero() {
  return vdupq_n_f32(0.0f);
}
KVC_ALWAYS_INLINE Vector load(const float* p) {
  return vld1q_f32(p);
}
KVC_ALWAYS_INLINE void store(float* p, Vector a) {
  vst1q_f32(p, a);
}
KVC_ALWAYS_INLINE Vector load_partial(const float* p, std::size_t count) {
  float lanes[Width] = {};
  for (std::size_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
KVC_ALWAYS_INLINE void store_partial(float* p, Vector a, std::size_t count) {
  float lanes[Width];
  store(lanes, a);
  for (std::size_t i = 0; i < count; ++i) p[i] = lanes[i];
}

KVC_ALWAYS_INLINE Vector add(Vector a, Vector b) {
  return vaddq_f32(a, b);
}
KVC_ALWAYS_INLINE Vector subtract(Vector a, Vector b) {
  return vsubq_f32(a, b);
}
KVC_ALWAYS_INLINE Vector multiply(Vector a, Vector b) {
  return vmulq_f32(a, b);
}
KVC_ALWAYS_INLINE Vector divide(Vector a, Vector b) {
  return vdivq_f32(a, b);
}
KVC_ALWAYS_INLINE Vector fma(Vector a, Vector b, Vector c) {
  return vfmaq_f32(c, a, b);
}
// By comparison, so that a NaN gives the second operand, as on the other targets (vminq would give the NaN).
KVC_ALWAYS_INLINE Vector minimum(Vector a, Vector b) {
  return vbslq_f32(vcltq_f32(a, b), a, b);
}
KVC_ALWAYS_INLINE Vector maximum(Vector a, Vector b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}
KVC_ALWAYS_INLINE Vector select_less(Vector a, Vector b, Vector yes, Vector no) {
  return vbslq_f32(vcltq_f32(a, b), yes, no);
}
KVC_ALWAYS_INLINE Vector opaque(Vector a) {
  __asm__("" : "+w"(a));
  return a;
}
KVC_ALWAYS_INLINE Vector round_even(Vector a) {
  return vrndnq_f32(a);
}
KVC_ALWAYS_INLINE Vector times_power_of_two(Vector a, Vector n) {  // for n integral in [-126, 127]
  const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
  return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}
KVC_ALWAYS_INLINE float sum_of(Vector a) {
  return vaddvq_f32(a);
}
KVC_ALWAYS_INLINE float max_of(Vector a) {
  return vmaxvq_f32(a);
}

KVC_ALWAYS_INLINE Words widen(const std::uint16_t* p) {
  return vmovl_u16(vld1_u16(p));
}
KVC_ALWAYS_INLINE void narrow(std::uint16_t* p, Words a) {
  vst1_u16(p, vmovn_u32(a));
}
KVC_ALWAYS_INLINE Vector load_half(const std::uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
KVC_ALWAYS_INLINE void store_half(std::uint16_t* p, Vector a) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a)));
}
KVC_ALWAYS_INLINE Vector load_bfloat(const std::uint16_t* p) {
  return float_of(vshlq_n_u32(widen(p), 16));
}
KVC_ALWAYS_INLINE void store_bfloat(std::uint16_t* p, Vector a) {  // as kvc::to_bfloat
  const Words bits = bits_of(a), high = vshrq_n_u32(bits, 16);
  const Words rounded = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, words(0x7fff)), vandq_u32(high, words(1))), 16);
  narrow(p, vbslq_u32(vceqq_f32(a, a), rounded, vorrq_u32(high, words(0x40))));
}

KVC_ALWAYS_INLINE Words load_words(const std::uint32_t* p) {
  return vld1q_u32(p);
}
KVC_ALWAYS_INLINE void store_words(std::uint32_t* p, Words a) {
  vst1q_u32(p, a);
}
template <unsigned Count>
KVC_ALWAYS_INLINE Words shift_right(Words a) {
  if constexpr (Count == 0)
    return a;  // no immediate, as clang++ says
  else
    return vshrq_n_u32(a, Count);
}
KVC_ALWAYS_INLINE Words shift_left_by(Words a, unsigned count) {
  return vshlq_u32(a, vdupq_n_s32(static_cast<int>(count)));
}
template <unsigned Count>
KVC_ALWAYS_INLINE Words shift_left(Words a) {
  return vshlq_n_u32(a, Count);
}
KVC_ALWAYS_INLINE Words shift_right_by(Words a, unsigned count) {
  return vshlq_u32(a, vdupq_n_s32(-static_cast<int>(count)));
}
KVC_ALWAYS_INLINE Words bit_and(Words a, Words b) {
  return vandq_u32(a, b);
}
KVC_ALWAYS_INLINE Words bit_or(Words a, Words b) {
  return vorrq_u32(a, b);
}
KVC_ALWAYS_INLINE Words signed_max(Words a, Words b) {
  return vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)));
}
KVC_ALWAYS_INLINE Vector to_float(Words a) {
  return vcvtq_f32_u32(a);
}
KVC_ALWAYS_INLINE Words to_words(Vector a) {
  return vreinterpretq_u32_s32(vcvtnq_s32_f32(a));
}
template <unsigned Bits>
KVC_ALWAYS_INLINE Vector low_codes(Words a) {
  return to_float(vandq_u32(a, words((1u << Bits) - 1)));
}
/// to[16 i + j] = from[stride j + i] for i, j < 16.
inline void transpose_tile(const float* from, std::size_t stride, float* to) {
  for (std::size_t j = 0; j < 16; ++j)
    for (std::size_t i = 0; i < 16; ++i) to[i * 16 + j] = from[j * stride + i];
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
