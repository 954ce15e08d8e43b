// 16 floats in two registers. Included inside a target region: no include guard, no #include.
namespace engine::ENGINE_TARGET {

constexpr std::size_t RowsPerBlock = 6, PanelsPerBlock = 1, FewRows = 4;

struct Vector {
  __m256 a, b;
};
struct Words {
  __m256i a, b;
};

ENGINE_INLINE Vector zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
ENGINE_INLINE Vector broadcast(float value) {
  return {_mm256_set1_ps(value), _mm256_set1_ps(value)};
}
ENGINE_INLINE Vector load(const float* from) {
  return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
ENGINE_INLINE void store(float* to, Vector x) {
  _mm256_storeu_ps(to, x.a);
  _mm256_storeu_ps(to + 8, x.b);
}
ENGINE_INLINE Vector add(Vector x, Vector y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
ENGINE_INLINE Vector mul(Vector x, Vector y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
ENGINE_INLINE Vector div(Vector x, Vector y) {
  return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
ENGINE_INLINE Vector max(Vector x, Vector y) {
  return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
ENGINE_INLINE Vector min(Vector x, Vector y) {
  return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}
ENGINE_INLINE Vector fma(Vector x, Vector y, Vector z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
ENGINE_INLINE Vector round(Vector x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
ENGINE_INLINE __m256 power_of_two(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
/// x * 2^n for whole n in [-126, 127].
ENGINE_INLINE Vector scale_by_power(Vector x, Vector n) {
  return mul(x, {power_of_two(n.a), power_of_two(n.b)});
}

ENGINE_INLINE __m256i load_integers(const std::byte* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
ENGINE_INLINE Words load_words(const std::byte* from) {
  return {load_integers(from), load_integers(from + 32)};
}
ENGINE_INLINE Words next_nibbles(Words words) {
  return {_mm256_srli_epi32(words.a, 4), _mm256_srli_epi32(words.b, 4)};
}
ENGINE_INLINE Vector lowest_nibbles(Words words) {
  const __m256i mask = _mm256_set1_epi32(15);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(words.a, mask)), _mm256_cvtepi32_ps(_mm256_and_si256(words.b, mask))};
}
ENGINE_INLINE Vector load_bytes(const std::byte* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
ENGINE_INLINE Vector load_halves(const std::byte* from) {
  const __m256i halves = load_integers(from);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}

}  // namespace engine::ENGINE_TARGET
