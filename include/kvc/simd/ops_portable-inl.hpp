// The facade in GNU vector extensions: four lanes, SSE2 on x86-64, whatever fits elsewhere. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

typedef float Vector __attribute__((vector_size(16)));
typedef std::uint32_t Words __attribute__((vector_size(16)));
typedef std::int32_t SignedWords __attribute__((vector_size(16)));
typedef std::uint16_t Halves __attribute__((vector_size(8)));
inline constexpr std::size_t Width = 4;
inline constexpr std::size_t Registers = 16;
inline constexpr bool Specialised = false;  // one loop serves all: nobody should be on this path
namespace narrower = KVC_TARGET;
inline constexpr bool HasNarrowerTarget = false;

KVC_ALWAYS_INLINE Words words(std::uint32_t x) {
  return Words{x, x, x, x};
}
KVC_ALWAYS_INLINE Words bits_of(Vector a) {
  return (Words)a;
}
KVC_ALWAYS_INLINE Vector float_of(Words a) {
  return (Vector)a;
}
KVC_ALWAYS_INLINE Vector choose(Words mask, Vector yes, Vector no) {
  return (Vector)((mask & (Words)yes) | (~mask & (Words)no));
}
KVC_ALWAYS_INLINE Words choose(Words mask, Words yes, Words no) {
  return (mask & yes) | (~mask & no);
}

KVC_ALWAYS_INLINE Vector set(float x) {
  return Vector{x, x, x, x};
}
KVC_ALWAYS_INLINE Vector zero() {
  return set(0.0f);
}
KVC_ALWAYS_INLINE Vector load(const float* p) {
  Vector a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
KVC_ALWAYS_INLINE void store(float* p, Vector a) {
  __builtin_memcpy(p, &a, sizeof a);
}
KVC_ALWAYS_INLINE Vector load_partial(const float* p, std::size_t count) {
  float lanes[Width] = {};
  for (std::size_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
KVC_ALWAYS_INLINE void store_partial(float* p, Vector a, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) p[i] = a[i];
}

KVC_ALWAYS_INLINE Vector add(Vector a, Vector b) {
  return a + b;
}
KVC_ALWAYS_INLINE Vector subtract(Vector a, Vector b) {
  return a - b;
}
KVC_ALWAYS_INLINE Vector multiply(Vector a, Vector b) {
  return a * b;
}
KVC_ALWAYS_INLINE Vector divide(Vector a, Vector b) {
  return a / b;
}
KVC_ALWAYS_INLINE Vector fma(Vector a, Vector b, Vector c) {
  return a * b + c;
}
KVC_ALWAYS_INLINE Vector minimum(Vector a, Vector b) {
  return choose((Words)(a < b), a, b);
}
KVC_ALWAYS_INLINE Vector maximum(Vector a, Vector b) {
  return choose((Words)(a > b), a, b);
}
KVC_ALWAYS_INLINE Vector select_less(Vector a, Vector b, Vector yes, Vector no) {
  return choose((Words)(a < b), yes, no);
}
KVC_ALWAYS_INLINE Vector opaque(Vector a) {
#if defined(__x86_64__)
  __asm__("" : "+x"(a));
#elif defined(__aarch64__)
  __asm__("" : "+w"(a));
#else
  __asm__("" : "+m"(a));
#endif
  return a;
}
KVC_ALWAYS_INLINE Vector round_even(Vector a) {  // for |a| < 2^22: the float adder rounds at the unit
  return subtract(opaque(add(a, set(12582912.0f))), set(12582912.0f));
}
KVC_ALWAYS_INLINE Vector times_power_of_two(Vector a, Vector n) {  // for n integral in [-126, 127]
  const Words exponent = (Words) __builtin_convertvector(n, SignedWords) + words(127);
  return a * (Vector)(exponent << 23);
}
KVC_ALWAYS_INLINE float sum_of(Vector a) {
  return (a[0] + a[2]) + (a[1] + a[3]);
}
KVC_ALWAYS_INLINE float max_of(Vector a) {
  const float low = a[0] > a[2] ? a[0] : a[2], high = a[1] > a[3] ? a[1] : a[3];
  return low > high ? low : high;
}

KVC_ALWAYS_INLINE Words widen(const std::uint16_t* p) {
  Halves a;
  __builtin_memcpy(&a, p, sizeof a);
  return __builtin_convertvector(a, Words);
}
KVC_ALWAYS_INLINE void narrow(std::uint16_t* p, Words a) {
  const Halves halves = __builtin_convertvector(a, Halves);
  __builtin_memcpy(p, &halves, sizeof halves);
}
KVC_ALWAYS_INLINE Vector load_half(const std::uint16_t* p) {  // as kvc::from_half
  const Words half = widen(p), sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  const Words finite = (Words)((Vector)(magnitude << 13) * (Vector)words(0x77800000u));
  const Words special = words(0x7f800000u) | ((magnitude & 0x3ffu) << 13);
  return (Vector)(sign | choose((Words)((SignedWords)magnitude > 0x7bff), special, finite));
}
KVC_ALWAYS_INLINE void store_half(std::uint16_t* p, Vector a) {  // as kvc::to_half
  const Words bits = (Words)a, sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const SignedWords compared = (SignedWords)magnitude;
  const Words subnormal = (Words)((Vector)magnitude + set(0.5f)) - 0x3f000000u;
  const Words normal = (magnitude + 0x0fffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  Words half = choose((Words)(compared < 0x38800000), subnormal, normal);
  half = choose((Words)(compared > 0x477fefff), words(0x7c00u), half);
  half = choose((Words)(compared > 0x7f800000), words(0x7e00u), half);
  narrow(p, sign | half);
}
KVC_ALWAYS_INLINE Vector load_bfloat(const std::uint16_t* p) {
  return (Vector)(widen(p) << 16);
}
KVC_ALWAYS_INLINE void store_bfloat(std::uint16_t* p, Vector a) {  // as kvc::to_bfloat
  const Words bits = (Words)a;
  const Words nan = (Words)((SignedWords)(bits & 0x7fffffffu) > 0x7f800000);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  narrow(p, choose(nan, (bits >> 16) | 0x40u, rounded));
}

KVC_ALWAYS_INLINE Words load_words(const std::uint32_t* p) {
  Words a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
KVC_ALWAYS_INLINE void store_words(std::uint32_t* p, Words a) {
  __builtin_memcpy(p, &a, sizeof a);
}
template <unsigned Count>
KVC_ALWAYS_INLINE Words shift_right(Words a) {
  return a >> Count;
}
template <unsigned Count>
KVC_ALWAYS_INLINE Words shift_left(Words a) {
  return a << Count;
}
KVC_ALWAYS_INLINE Words shift_right_by(Words a, unsigned count) {
  return a >> words(count);
}
KVC_ALWAYS_INLINE Words shift_left_by(Words a, unsigned count) {
  return a << words(count);
}
KVC_ALWAYS_INLINE Words bit_and(Words a, Words b) {
  return a & b;
}
KVC_ALWAYS_INLINE Words bit_or(Words a, Words b) {
  return a | b;
}
KVC_ALWAYS_INLINE Words signed_max(Words a, Words b) {
  return choose((Words)((SignedWords)a > (SignedWords)b), a, b);
}
KVC_ALWAYS_INLINE Vector to_float(Words a) {
  return __builtin_convertvector((SignedWords)a, Vector);
}
KVC_ALWAYS_INLINE Words to_words(Vector a) {
  return (Words) __builtin_convertvector(a, SignedWords);
}
template <unsigned Bits>
KVC_ALWAYS_INLINE Vector low_codes(Words a) {
  return to_float(a & ((1u << Bits) - 1));
}
/// to[16 i + j] = from[stride j + i] for i, j < 16.
inline void transpose_tile(const float* from, std::size_t stride, float* to) {
  for (std::size_t j = 0; j < 16; ++j)
    for (std::size_t i = 0; i < 16; ++i) to[i * 16 + j] = from[j * stride + i];
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
