// Quantizing one strip of 16 lanes × 32 depths: the fast way to the same codes. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// What a strip's elements are divided by.
struct Divisor {
  Vector scale, minus_scale, inverse;
};

/// x / scale, correctly rounded. A division takes as long as eight other steps, so where the scale came out of f16 an estimate
/// is corrected instead. With 1 / scale correctly rounded, the estimate is within two ulps, its remainder is exact, and
/// what is added last is within 2^-23 ulp of the quotient before it is rounded. A float over 11 bits is never within 2^-13
/// ulp of the middle between two floats, so that rounds as the quotient itself does.
KVC_ALWAYS_INLINE Vector quotient(Vector x, const Divisor& by, bool divides) {
  if (divides) return select_less(zero(), by.scale, divide(x, by.scale), zero());
  const Vector estimate = multiply(x, by.inverse);
  return fma(fma(estimate, by.minus_scale, x), by.inverse, estimate);
}

/// Codes of a strip, the same as quantize() gives; `metadata` is the strip whose scales and minima they take.
template <unsigned Bits, bool AlongLanes>
void encode_strip(const Strip& strip, const Strip& metadata, bool divides, std::uint32_t* target) {
  constexpr unsigned LowBits = Bits == 3 ? 2 : Bits;
  constexpr std::size_t Planes = 32 / LowBits;
  const Vector levels = set(static_cast<float>((1u << Bits) - 1));
  Vector lane_low[TileVectors];
  Divisor lane_by[TileVectors];
  Words high[TileVectors];
  KVC_UNROLL
  for (std::size_t i = 0; i < TileVectors; ++i) {
    lane_low[i] = load(metadata.low + i * Width);
    lane_by[i] = {load(metadata.scale + i * Width), load(metadata.minus_scale + i * Width),
                  load(metadata.inverse + i * Width)};
    high[i] = words(0);
  }
  for (std::size_t first = 0; first < StripDepth; first += Planes, target += TileLanes) {
    const TileRows& rows = strip.rows[first / TileLanes];
    const float* x = rows[first % TileLanes + Planes];
    std::size_t d = first + Planes;
    Words built[TileVectors], high_of_row[TileVectors];
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) built[i] = high_of_row[i] = words(0);
    // The last plane first, so that one fixed shift makes room for the next.
    KVC_UNROLL_SOME
    for (std::size_t step = 0; step < Planes; ++step) {
      --d;
      x -= rows.stride;
      const Vector low_of_depth = set(metadata.low[d]);
      const Divisor by_of_depth = {set(metadata.scale[d]), set(metadata.minus_scale[d]), set(metadata.inverse[d])};
      KVC_UNROLL
      for (std::size_t i = 0; i < TileVectors; ++i) {
        const Vector above = subtract(load(x + i * Width), AlongLanes ? low_of_depth : lane_low[i]);
        const Vector at_most = minimum(quotient(above, AlongLanes ? by_of_depth : lane_by[i], divides), levels);
        const Words code = signed_max(to_words(at_most), words(0));
        built[i] = bit_or(shift_left<LowBits>(built[i]), Bits == 3 ? bit_and(code, words(3)) : code);
        if constexpr (Bits == 3) {  // a row's high bits: four together, then a gap for those of the other row
          const Words before = step % 4 == 0 ? shift_left<5>(high_of_row[i]) : shift_left<1>(high_of_row[i]);
          high_of_row[i] = bit_or(before, shift_right<2>(code));
        }
      }
    }
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) {
      store_words(target + i * Width, built[i]);
      if constexpr (Bits == 3) high[i] = bit_or(high[i], first == 0 ? high_of_row[i] : shift_left<4>(high_of_row[i]));
    }
  }
  if constexpr (Bits == 3) {
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) store_words(target + i * Width, high[i]);
  }
}

inline constexpr StripEncoders OwnStripEncoders = {
    {{encode_strip<2, false>, encode_strip<3, false>, encode_strip<4, false>, encode_strip<8, false>},
     {encode_strip<2, true>, encode_strip<3, true>, encode_strip<4, true>, encode_strip<8, true>}}};

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
