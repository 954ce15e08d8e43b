// Elementary functions over the facade. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// exp(x) for x <= 88, relative error below 2e-7; 0 below the smallest normal result, exp(-inf) = 0, NaN stays NaN.
KVC_ALWAYS_INLINE Vector exponential(Vector x) {
  // exp(x) = 2^n exp(r) with r = x - n ln 2 in [-0.35, 0.35]; ln 2 in two parts, so n times the first one is exact. The
  // operand order of maximum keeps a NaN of x.
  const Vector clamped = maximum(set(-87.3f), x);
  // Beside 3 · 2^22 a float has no fraction left: adding it rounds.
  const Vector n = subtract(opaque(fma(clamped, set(1.44269504f), set(12582912.0f))), set(12582912.0f));
  const Vector r = fma(n, set(2.12194440e-4f), fma(n, set(-0.693359375f), clamped));
  Vector p = set(1.9875691500e-4f);
  p = fma(p, r, set(1.3981999507e-3f));
  p = fma(p, r, set(8.3334519073e-3f));
  p = fma(p, r, set(4.1665795894e-2f));
  p = fma(p, r, set(1.6666665459e-1f));
  p = fma(p, r, set(5.0000001201e-1f));
  p = fma(fma(p, r, set(1.0f)), r, set(1.0f));
  return select_less(x, set(-87.3f), zero(), times_power_of_two(p, n));
}

/// tanh(x), relative error below 1e-6 everywhere.
KVC_ALWAYS_INLINE Vector hyperbolic_tangent(Vector x) {
  const Vector magnitude = float_of(bit_and(bits_of(x), words(0x7fffffffu)));
  // Large arguments: 1 - 2 / (exp(2|x|) + 1). Small ones would cancel there and take an odd polynomial instead.
  const Vector grown = exponential(minimum(set(40.0f), add(magnitude, magnitude)));
  const Vector large = subtract(set(1.0f), divide(set(2.0f), add(grown, set(1.0f))));
  const Vector square = multiply(x, x);
  Vector p = set(-5.70498872745e-3f);
  p = fma(p, square, set(2.06390887954e-2f));
  p = fma(p, square, set(-5.37397155531e-2f));
  p = fma(p, square, set(1.33314442036e-1f));
  p = fma(p, square, set(-3.33332819422e-1f));
  const Vector small = fma(multiply(p, square), x, x);
  const Vector with_sign = float_of(bit_or(bits_of(large), bit_and(bits_of(x), words(0x80000000u))));
  return select_less(magnitude, set(0.625f), small, with_sign);
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
