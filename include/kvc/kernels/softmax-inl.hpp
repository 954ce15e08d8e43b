// Softmax, soft cap and checks over rows of scores. Re-included, no guard.
namespace kvc::kernels {
inline namespace KVC_ABI {
namespace KVC_TARGET {

inline constexpr float MinusInfinity = -__builtin_inff();

/// `Width` floats, of which the first `count` exist; the others read as -inf.
KVC_ALWAYS_INLINE Vector load_scores(const float* p, std::size_t count) {
  if (count >= Width) return load(p);
  float lanes[Width];
  for (std::size_t i = 0; i < Width; ++i) lanes[i] = i < count ? p[i] : MinusInfinity;
  return load(lanes);
}
KVC_ALWAYS_INLINE Vector load_some(const float* p, std::size_t count) {
  return count >= Width ? load(p) : load_partial(p, count);
}
KVC_ALWAYS_INLINE void store_some(float* p, Vector a, std::size_t count) {
  if (count >= Width) store(p, a);
  else store_partial(p, a, count);
}

/// Adds the bias to one row; returns the row's maximum.
inline float bias_and_maximum(float* scores, std::size_t count, const float* bias) {
  Vector highest = set(MinusInfinity);
  for (std::size_t i = 0; i < count; i += Width) {
    Vector score = load_scores(scores + i, count - i);
    if (bias) {
      score = add(score, load_some(bias + i, count - i));
      store_some(scores + i, score, count - i);
    }
    highest = maximum(score, highest);
  }
  return max_of(highest);
}

/// Replaces one row by exp(score - shift); returns the sum of the new terms.
inline float exponentiate(float* scores, std::size_t count, float shift) {
  const Vector shifts = set(shift);
  Vector sum = zero();
  for (std::size_t i = 0; i < count; i += Width) {
    const Vector term = exponential(subtract(load_scores(scores + i, count - i), shifts));
    store_some(scores + i, term, count - i);
    sum = add(sum, term);
  }
  return sum_of(sum);
}

inline void softmax_update(float* scores, std::size_t stride, std::size_t rows, std::size_t count, const float* bias,
                           float* maxima, float* sums, float* corrections) {
  for (std::size_t r = 0; r < rows; ++r) {
    float* row = scores + r * stride;
    const float before = maxima[r], found = bias_and_maximum(row, count, bias);
    const float now = found > before ? found : before;
    // With no finite score yet there is no maximum to subtract; shifting by 0 makes every -inf a 0 (and keeps a NaN).
    const bool nothing = now == MinusInfinity;
    float correction[Width];
    store(correction, exponential(set(nothing ? 0.0f : before - now)));
    maxima[r] = now;
    corrections[r] = correction[0];
    sums[r] = sums[r] * correction[0] + exponentiate(row, count, nothing ? 0.0f : now);
  }
}

inline void scale_rows(float* x, std::size_t stride, std::size_t rows, std::size_t count, const float* factors) {
  for (std::size_t r = 0; r < rows; ++r) {
    const Vector factor = set(factors[r]);
    for (std::size_t i = 0; i < count; i += Width) {
      float* p = x + r * stride + i;
      store_some(p, multiply(load_some(p, count - i), factor), count - i);
    }
  }
}

inline void probabilities(const float* scores, const float* bias, std::size_t count, float lse, float* target,
                          bool add_to) {
  const bool nothing = lse == MinusInfinity;
  const Vector shift = set(lse);
  for (std::size_t i = 0; i < count; i += Width) {
    const std::size_t left = count - i;
    Vector score = load_scores(scores + i, left);
    if (bias) score = add(score, load_some(bias + i, left));
    Vector probability = nothing ? zero() : exponential(subtract(score, shift));
    if (add_to) probability = add(probability, load_some(target + i, left));
    store_some(target + i, probability, left);
  }
}

inline void softcap(float* scores, std::size_t count, float cap) {
  const Vector caps = set(cap);
  for (std::size_t i = 0; i < count; i += Width) {
    const Vector ratio = divide(load_some(scores + i, count - i), caps);
    store_some(scores + i, multiply(caps, hyperbolic_tangent(ratio)), count - i);
  }
}

inline bool all_finite(const float* x, std::size_t count) {
  Words highest = words(0);
  const Words magnitude = words(0x7fffffffu);
  for (std::size_t i = 0; i < count; i += Width)
    highest = signed_max(highest, bit_and(bits_of(load_some(x + i, count - i)), magnitude));
  std::uint32_t lanes[Width];
  store_words(lanes, highest);
  for (std::uint32_t bits : lanes)
    if (bits >= 0x7f800000u) return false;  // by bits, so that -ffast-math cannot assume the answer
  return true;
}

}  // namespace KVC_TARGET
}  // namespace KVC_ABI
}  // namespace kvc::kernels
