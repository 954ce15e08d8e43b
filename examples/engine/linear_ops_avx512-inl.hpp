// 16 floats in one register. Included inside a target region: no include guard, no #include.
namespace engine::ENGINE_TARGET {

constexpr std::size_t RowsPerBlock = 8, PanelsPerBlock = 3, FewRows = 8;

using Vector = __m512;
using Words = __m512i;

ENGINE_INLINE Vector zero() {
  return _mm512_setzero_ps();
}
ENGINE_INLINE Vector broadcast(float value) {
  return _mm512_set1_ps(value);
}
ENGINE_INLINE Vector load(const float* from) {
  return _mm512_loadu_ps(from);
}
ENGINE_INLINE void store(float* to, Vector a) {
  _mm512_storeu_ps(to, a);
}
ENGINE_INLINE Vector add(Vector a, Vector b) {
  return _mm512_add_ps(a, b);
}
ENGINE_INLINE Vector mul(Vector a, Vector b) {
  return _mm512_mul_ps(a, b);
}
ENGINE_INLINE Vector div(Vector a, Vector b) {
  return _mm512_div_ps(a, b);
}
ENGINE_INLINE Vector max(Vector a, Vector b) {
  return _mm512_max_ps(a, b);
}
ENGINE_INLINE Vector min(Vector a, Vector b) {
  return _mm512_min_ps(a, b);
}
ENGINE_INLINE Vector fma(Vector a, Vector b, Vector c) {
  return _mm512_fmadd_ps(a, b, c);
}
ENGINE_INLINE Vector round(Vector a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/// a * 2^n for whole n.
ENGINE_INLINE Vector scale_by_power(Vector a, Vector n) {
  return _mm512_scalef_ps(a, n);
}

ENGINE_INLINE Words load_words(const std::byte* from) {
  return _mm512_loadu_si512(from);
}
ENGINE_INLINE Words next_nibbles(Words words) {
  return _mm512_srli_epi32(words, 4);
}
/// The lowest nibble of every word: the permutation looks at four bits only, so it converts without masking.
ENGINE_INLINE Vector lowest_nibbles(Words words) {
  const Vector table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_permutexvar_ps(words, table);
}
ENGINE_INLINE Vector load_bytes(const std::byte* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
ENGINE_INLINE Vector load_halves(const std::byte* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

}  // namespace engine::ENGINE_TARGET
