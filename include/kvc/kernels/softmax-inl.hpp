// Softmax, soft cap and checks over rows of scores. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

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
  if (count >= Width)
    store(p, a);
  else
    store_partial(p, a, count);
}

inline constexpr std::size_t Chains = Specialised ? 4 : 1;  // of maxima and sums, which wait for each other within a chain

/// Calls step(chain, first, count) for `count` elements in vectors: vector i belongs to chain i % Chains, however many
/// there are.
template <class Step>
KVC_ALWAYS_INLINE void for_each_vector(std::size_t count, Step step) {
  std::size_t i = 0;
  for (; i + Chains * Width <= count; i += Chains * Width) {
    KVC_UNROLL
    for (std::size_t chain = 0; chain < Chains; ++chain) step(chain, i + chain * Width, Width);
  }
  KVC_UNROLL
  for (std::size_t chain = 0; chain < Chains; ++chain, i += Width)
    if (i < count) step(chain, i, count - i);
}

/// Adds the bias to one row; returns the row's maximum.
inline float bias_and_maximum(float* scores, std::size_t count, const float* bias) {
  Vector highest[Chains];
  for (Vector& chain : highest) chain = set(MinusInfinity);
  for_each_vector(count, [&](std::size_t chain, std::size_t i, std::size_t left) KVC_LAMBDA_INLINE {
    Vector score = load_scores(scores + i, left);
    if (bias) {
      score = add(score, load_some(bias + i, left));
      store_some(scores + i, score, left);
    }
    highest[chain] = maximum(score, highest[chain]);
  });
  for (std::size_t chain = 1; chain < Chains; ++chain) highest[0] = maximum(highest[0], highest[chain]);
  return max_of(highest[0]);
}

/// Replaces one row by exp(score - shift); returns the sum of the new terms.
inline float exponentiate(float* scores, std::size_t count, float shift) {
  const Vector shifts = set(shift);
  Vector sum[Chains];
  for (Vector& chain : sum) chain = zero();
  for_each_vector(count, [&](std::size_t chain, std::size_t i, std::size_t left) KVC_LAMBDA_INLINE {
    const Vector term = exponential(subtract(load_scores(scores + i, left), shifts));
    store_some(scores + i, term, left);
    sum[chain] = add(sum[chain], term);
  });
  return sum_of(Chains == 1 ? sum[0] : add(add(sum[0], sum[1]), add(sum[Chains - 2], sum[Chains - 1])));
}

inline void softmax_update(float* scores, std::size_t stride, std::size_t rows, std::size_t count, const float* bias,
                           float* maxima, float* sums, float* corrections) {
  for (std::size_t r = 0; r < rows; ++r) {
    float* row = scores + r * stride;
    const float before = maxima[r], found = bias_and_maximum(row, count, bias);
    corrections[r] = 1;
    if (found > before) {  // seldom, once some chunks have passed
      float correction[Width];
      store(correction, exponential(set(before - found)));
      maxima[r] = found;
      corrections[r] = correction[0];
    }
    // With no finite score yet there is no maximum to subtract; shifting by 0 makes every -inf a 0 (and keeps a NaN).
    const float shift = maxima[r] == MinusInfinity ? 0.0f : maxima[r];
    sums[r] = sums[r] * corrections[r] + exponentiate(row, count, shift);
  }
}

inline void scale_rows(float* x, std::size_t stride, std::size_t rows, std::size_t count, const float* factors) {
  for (std::size_t r = 0; r < rows; ++r) {
    if (factors[r] == 1) continue;  // most rows keep their maximum
    const Vector factor = set(factors[r]);
    for (std::size_t i = 0; i < count; i += Width) {
      float* p = x + r * stride + i;
      store_some(p, multiply(load_some(p, count - i), factor), count - i);
    }
  }
}

inline void exponentials(const float* scores, const float* bias, std::size_t count, float* target) {
  for (std::size_t i = 0; i < count; i += Width) {
    const std::size_t left = count - i;
    Vector score = load_scores(scores + i, left);
    if (bias) score = add(score, load_some(bias + i, left));
    store_some(target + i, exponential(score), left);
  }
}

inline void column_maxima(const float* x, std::size_t stride, std::size_t rows, std::size_t count,
                          const float* factors, float* maxima) {
  for (std::size_t i = 0; i < count; i += Width) {
    const std::size_t left = count - i;
    Vector highest = load_some(maxima + i, left);
    for (std::size_t r = 0; r < rows; ++r)
      highest = maximum(multiply(set(factors[r]), load_some(x + r * stride + i, left)), highest);
    store_some(maxima + i, highest, left);
  }
}

inline void softcap(float* scores, std::size_t count, float cap) {
  const Vector caps = set(cap);
  for (std::size_t i = 0; i < count; i += Width) {
    const Vector ratio = divide(load_some(scores + i, count - i), caps);
    store_some(scores + i, multiply(caps, hyperbolic_tangent(ratio)), count - i);
  }
}

inline bool all_within(const float* x, std::size_t count, float most) {
  Words highest = words(0);
  const Words magnitude = words(0x7fffffffu);
  for (std::size_t i = 0; i < count; i += Width)
    highest = signed_max(highest, bit_and(bits_of(load_some(x + i, count - i)), magnitude));
  std::uint32_t lanes[Width];
  store_words(lanes, highest);
  for (std::uint32_t bits : lanes)
    if (bits > std::bit_cast<std::uint32_t>(most)) return false;  // by bits, so that -ffast-math cannot assume the answer
  return true;
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
