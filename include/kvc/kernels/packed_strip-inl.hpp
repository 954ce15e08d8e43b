// Quantizing whole strips of 16 lanes × 32 p: the fast way to the same codes. Re-included, no guard.
namespace kvc::kernels {
inline namespace KVC_ABI {
namespace KVC_TARGET {

/// A strip is 16 lanes × 32 consecutive p, whole units of every width, with the metadata of its elements: one scale a p
/// (groups along lanes) or one a lane (groups along p).
inline constexpr std::size_t StripP = 32;
struct Strip {
  TileRows rows[StripP / TileLanes];
  bool along_lanes;
  float scale[StripP], low[StripP], inverse[StripP];  // StripP of them along lanes, TileLanes along p
};

/// Codes of a strip by multiplying with 1 / scale, which is within two roundings of dividing. False where that could have
/// changed a code: the quotient lies that close to the middle between two codes. Then nothing counts, and the strip is
/// encoded by dividing.
template <unsigned Bits>
bool encode_strip(const Strip& strip, std::uint32_t* target) {
  constexpr unsigned LowBits = Bits == 3 ? 2 : Bits;
  constexpr std::size_t Rows = StripP * Bits / 32, PlanesPerRow = 32 / LowBits;
  constexpr float Levels = static_cast<float>((1u << Bits) - 1);
  constexpr PackedLayout Layout{.bits = Bits};
  Vector farthest[TileVectors];
  Words high[TileVectors];
  KVC_UNROLL
  for (std::size_t i = 0; i < TileVectors; ++i) {
    farthest[i] = zero();
    high[i] = words(0);
  }
  for (std::size_t row = 0; row < StripP / PlanesPerRow; ++row) {
    Words built[TileVectors];
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) built[i] = words(0);
    KVC_UNROLL
    for (std::size_t step = 0; step < PlanesPerRow; ++step) {
      // The last plane first, so that one fixed shift makes room for the next.
      const std::size_t p = row * PlanesPerRow + PlanesPerRow - 1 - step;
      const float* x = strip.rows[p / TileLanes][p % TileLanes];
      KVC_UNROLL
      for (std::size_t i = 0; i < TileVectors; ++i) {
        const Vector low = strip.along_lanes ? set(strip.low[p]) : load(strip.low + i * Width);
        const Vector inverse = strip.along_lanes ? set(strip.inverse[p]) : load(strip.inverse + i * Width);
        const Vector ratio = minimum(multiply(subtract(load(x + i * Width), low), inverse), set(Levels));
        const Words nearest = to_words(ratio);
        const Vector distance = subtract(ratio, to_float(nearest));
        farthest[i] = maximum(float_of(bit_and(bits_of(distance), words(0x7fffffffu))), farthest[i]);
        const Words code = signed_max(nearest, words(0));
        const Words low_code = Bits == 3 ? bit_and(code, words(3)) : code;
        built[i] = bit_or(shift_left<LowBits>(built[i]), low_code);
        if constexpr (Bits == 3)
          high[i] = bit_or(high[i], shift_left_by(shift_right<2>(code), Layout.plane_place(p).high_shift));
      }
    }
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) store_words(target + row * TileLanes + i * Width, built[i]);
  }
  if constexpr (Bits == 3) {
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) store_words(target + (Rows - 1) * TileLanes + i * Width, high[i]);
  }
  constexpr float Safe = 0.5f - (Levels + 1) * 2e-7f;  // three roundings, of 2^-24 of Levels each, is what can differ
  for (std::size_t i = 0; i < TileVectors; ++i)
    if (!(max_of(farthest[i]) < Safe)) return false;
  return true;
}

/// Reads a strip's metadata and elements; false where the metadata has no harmless inverse.
inline bool load_strip(const MetadataView& view, const Window& window, std::size_t p, std::size_t lane,
                       const ConstFloatMatrix& source, Strip& strip) {
  strip.along_lanes = view.layout.along == GroupsAlong::lanes;
  const std::size_t count = strip.along_lanes ? StripP : TileLanes;
  view.get(p, lane, count, strip.scale, strip.low);
  for (std::size_t i = 0; i < count; i += Width) {
    const Vector scale = load(strip.scale + i);
    // A scale of 0 has code 0 everywhere.
    store(strip.inverse + i, select_less(zero(), scale, divide(set(1.0f), scale), zero()));
  }
  for (std::size_t i = 0; i < count; ++i)
    if (strip.scale[i] != 0 && !(strip.scale[i] > 1e-30f && strip.scale[i] < 1e30f)) return false;
  const float* from =
      source.data + (p - window.p_begin) * source.p_stride + (lane - window.lane_begin) * source.lane_stride;
  for (TileRows& rows : strip.rows) {
    rows.fetch(from, source.lane_stride, TileLanes, source.p_stride, TileLanes);
    from += TileLanes * source.p_stride;
  }
  return true;
}

/// Encodes the strips that the window has of a tile's 16 lanes from p on; returns the first p that is left.
inline std::size_t encode_strips(const MetadataView& view, std::uint32_t* codes, const Window& window,
                                 const TileSpan& span, std::size_t p, const ConstFloatMatrix& source) {
  const PackedLayout& layout = view.layout;
  const bool groups_fit = layout.along == GroupsAlong::lanes || layout.group % StripP == 0;
  if (span.count != TileLanes || !groups_fit || p % StripP != 0) return p;
  Strip strip;
  for (; p + StripP <= window.p_begin + window.p_count; p += StripP) {
    if (!load_strip(view, window, p, span.lane, source, strip)) return p;
    std::uint32_t* target = codes + layout.code_place(p, span.lane).dword;
    const bool exact = layout.bits == 2   ? encode_strip<2>(strip, target)
                       : layout.bits == 3 ? encode_strip<3>(strip, target)
                       : layout.bits == 4 ? encode_strip<4>(strip, target)
                                          : encode_strip<8>(strip, target);
    if (!exact) return p;
  }
  return p;
}

}  // namespace KVC_TARGET
}  // namespace KVC_ABI
}  // namespace kvc::kernels
