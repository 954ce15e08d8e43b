// Quantizing whole strips of 16 lanes × 32 p: the fast way to the same codes. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// A strip is 16 lanes × 32 consecutive p, whole units of every width, with the metadata of its elements: one scale a p
/// (groups along lanes) or one a lane (groups along p).
inline constexpr std::size_t StripP = 32;
struct Strip {
  TileRows rows[StripP / TileLanes];
  float scale[StripP], low[StripP], minus_scale[StripP], inverse[StripP];  // along p, the first TileLanes of them

  /// Along p: the lanes' scales and minima are those of another strip.
  KVC_ALWAYS_INLINE void take_metadata(const Strip& other) {
    KVC_UNROLL
    for (std::size_t i = 0; i < TileLanes; i += Width) {
      store(scale + i, load(other.scale + i));
      store(low + i, load(other.low + i));
      store(minus_scale + i, load(other.minus_scale + i));
      store(inverse + i, load(other.inverse + i));
    }
  }
};

/// What a strip's elements are divided by.
struct Divisor {
  Vector scale, minus_scale, inverse;
};

/// x / scale, correctly rounded. A division takes as long as eight other steps, so where the scale came out of f16 an estimate
/// is corrected instead. With 1 / scale correctly rounded, the estimate is within two ulps, its remainder is exact, and
/// what is added last is within 2^-23 ulp of the quotient before it is rounded. A float over 11 bits is never within 2^-13
/// ulp of the middle between two floats, so that rounds as the quotient itself does.
template <bool Divides>
KVC_ALWAYS_INLINE Vector quotient(Vector x, const Divisor& by) {
  if constexpr (Divides || !RoundsInHardware) {
    return select_less(zero(), by.scale, divide(x, by.scale), zero());
  } else {
    const Vector estimate = multiply(x, by.inverse);
    return fma(fma(estimate, by.minus_scale, x), by.inverse, estimate);
  }
}

/// Codes of a strip, the same as quantize() gives.
template <unsigned Bits, bool AlongLanes, bool Divides>
void encode_strip(const Strip& strip, std::uint32_t* target) {
  constexpr unsigned LowBits = Bits == 3 ? 2 : Bits;
  constexpr std::size_t Rows = StripP * Bits / 32, PlanesPerRow = 32 / LowBits;
  constexpr float Levels = static_cast<float>((1u << Bits) - 1);
  Vector low[TileVectors];
  Divisor by[TileVectors];
  Words high[TileVectors];
  KVC_UNROLL
  for (std::size_t i = 0; i < TileVectors; ++i) {
    low[i] = load(strip.low + i * Width);
    by[i] = {load(strip.scale + i * Width), load(strip.minus_scale + i * Width), load(strip.inverse + i * Width)};
    high[i] = words(0);
  }
  for (std::size_t row = 0; row < StripP / PlanesPerRow; ++row) {
    Words built[TileVectors], high_of_row[TileVectors];
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) built[i] = high_of_row[i] = words(0);
    KVC_UNROLL
    for (std::size_t step = 0; step < PlanesPerRow; ++step) {
      // The last plane first, so that one fixed shift makes room for the next.
      const std::size_t p = row * PlanesPerRow + PlanesPerRow - 1 - step;
      const float* x = strip.rows[p / TileLanes][p % TileLanes];
      const Vector low_of_p = set(strip.low[p]);
      const Divisor by_of_p = {set(strip.scale[p]), set(strip.minus_scale[p]), set(strip.inverse[p])};
      KVC_UNROLL
      for (std::size_t i = 0; i < TileVectors; ++i) {
        const Vector above = subtract(load(x + i * Width), AlongLanes ? low_of_p : low[i]);
        const Vector ratio = quotient<Divides>(above, AlongLanes ? by_of_p : by[i]);
        const Vector at_most = minimum(ratio, set(Levels));
        const Words code = signed_max(to_words(RoundsInHardware ? at_most : round_even(at_most)), words(0));
        const Words low_code = Bits == 3 ? bit_and(code, words(3)) : code;
        built[i] = bit_or(shift_left<LowBits>(built[i]), low_code);
        if constexpr (Bits == 3) {  // a row's high bits: four together, then a gap for those of the other row
          const Words before = step % 4 == 0 ? shift_left<5>(high_of_row[i]) : shift_left<1>(high_of_row[i]);
          high_of_row[i] = bit_or(before, shift_right<2>(code));
        }
      }
    }
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) {
      store_words(target + row * TileLanes + i * Width, built[i]);
      if constexpr (Bits == 3) high[i] = bit_or(high[i], row == 0 ? high_of_row[i] : shift_left<4>(high_of_row[i]));
    }
  }
  if constexpr (Bits == 3) {
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) store_words(target + (Rows - 1) * TileLanes + i * Width, high[i]);
  }
}

using StripEncoder = void (*)(const Strip&, std::uint32_t*);
template <unsigned Bits>
StripEncoder strip_encoder_of(const PackedLayout& layout) {
  if (layout.along == GroupsAlong::lanes)
    return layout.metadata == Scalar::f32 ? encode_strip<Bits, true, true> : encode_strip<Bits, true, false>;
  return layout.metadata == Scalar::f32 ? encode_strip<Bits, false, true> : encode_strip<Bits, false, false>;
}
inline StripEncoder strip_encoder(const PackedLayout& layout) {
  switch (layout.bits) {
    case 2:
      return strip_encoder_of<2>(layout);
    case 3:
      return strip_encoder_of<3>(layout);
    case 4:
      return strip_encoder_of<4>(layout);
    default:
      return strip_encoder_of<8>(layout);
  }
}

/// Prepares the division by the first `count` scales; false where a scale or minimum is too large or small for it.
inline bool invert(Strip& strip, std::size_t count) {
  Vector most = zero(), least = set(-1.0f);  // of the negated scales
  for (std::size_t i = 0; i < count; i += Width) {
    const Vector scale = load(strip.scale + i), low = load(strip.low + i), minus_scale = subtract(zero(), scale);
    store(strip.minus_scale + i, minus_scale);
    // A scale of 0 has code 0 everywhere.
    store(strip.inverse + i, select_less(zero(), scale, divide(set(1.0f), scale), zero()));
    most = maximum(maximum(scale, maximum(low, subtract(zero(), low))), most);
    least = maximum(select_less(zero(), scale, minus_scale, set(-1.0f)), least);
  }
  return max_of(most) < 1e20f && max_of(least) < -1e-20f;
}

/// The part of a window, and of its source, that begins at (lane, p) of it.
struct WindowPart {
  Window window;
  ConstFloatMatrix source;

  WindowPart(const Window& whole, const ConstFloatMatrix& all, const Window& part)
      : window{whole.lane_begin + part.lane_begin, part.lanes, whole.p_begin + part.p_begin, part.p_count},
        source{all.data + part.lane_begin * all.lane_stride + part.p_begin * all.p_stride, all.p_stride,
               all.lane_stride} {}
};

/// Groups along lanes: every group of lanes × 32 p, whose scales serve all its tiles.
inline void encode_strips_along_lanes(const MetadataView& view, std::uint32_t* codes, const WindowPart& part) {
  const auto& [window, source] = part;
  const PackedLayout& layout = view.layout;
  const StripEncoder encode = strip_encoder(layout);
  const std::size_t tile_dwords = layout.dword_rows() * TileLanes;
  Strip strip;
  for (std::size_t lane = 0; lane < window.lanes; lane += layout.group) {
    std::uint32_t* target = codes + layout.code_place(window.p_begin, window.lane_begin + lane).dword;
    for (std::size_t p = 0; p < window.p_count; p += StripP, target += StripP * layout.bits / 32 * TileLanes) {
      const float* from = source.data + lane * source.lane_stride + p * source.p_stride;
      for (std::size_t c = 0; c < StripP; c += TileLanes) {
        find_ranges(from + c * source.p_stride, source.p_stride, TileLanes, source.lane_stride, layout.group,
                    layout.bits, strip.scale + c, strip.low + c);
        view.put(window.p_begin + p + c, window.lane_begin + lane, strip.scale + c, strip.low + c, TileLanes);
      }
      if (!invert(strip, StripP)) {
        const WindowPart rest(window, source, {lane, layout.group, p, StripP});
        encode_units(view, codes, rest.window, rest.source);
        continue;
      }
      for (std::size_t tile = 0; tile < layout.tiles_per_group(); ++tile) {
        for (std::size_t i = 0; i < StripP / TileLanes; ++i)
          strip.rows[i].fetch(from + tile * TileLanes * source.lane_stride + i * TileLanes * source.p_stride,
                              source.lane_stride, TileLanes, source.p_stride, TileLanes);
        encode(strip, target + tile * tile_dwords);
      }
    }
  }
}

/// Groups along p: 16 lanes × every group, whose elements are fetched once for their range and their codes.
inline constexpr std::size_t LongestStripGroup = 4 * StripP;
inline void encode_strips_along_p(const MetadataView& view, std::uint32_t* codes, const WindowPart& part) {
  const auto& [window, source] = part;
  const PackedLayout& layout = view.layout;
  const StripEncoder encode = strip_encoder(layout);
  Strip strips[LongestStripGroup / StripP];
  for (std::size_t lane = 0; lane < window.lanes; lane += TileLanes) {
    std::uint32_t* target = codes + layout.code_place(window.p_begin, window.lane_begin + lane).dword;
    for (std::size_t p = 0; p < window.p_count; p += layout.group) {
      Ranges ranges;
      for (std::size_t i = 0; i < layout.group; i += TileLanes) {
        TileRows& rows = strips[i / StripP].rows[i % StripP / TileLanes];
        rows.fetch(source.data + lane * source.lane_stride + (p + i) * source.p_stride, source.lane_stride, TileLanes,
                   source.p_stride, TileLanes);
        ranges.take(rows, TileLanes);
      }
      Strip& first = strips[0];
      ranges.metadata(layout.bits, first.scale, first.low);
      view.put(window.p_begin + p, window.lane_begin + lane, first.scale, first.low, TileLanes);
      const bool harmless = invert(first, TileLanes);
      if (!harmless) {
        const WindowPart rest(window, source, {lane, TileLanes, p, layout.group});
        encode_units(view, codes, rest.window, rest.source);
      }
      for (std::size_t i = 0; i < layout.group; i += StripP, target += StripP * layout.bits / 32 * TileLanes) {
        if (!harmless) continue;
        Strip& strip = strips[i / StripP];
        if (i > 0) strip.take_metadata(first);
        encode(strip, target);
      }
    }
  }
}

/// Encodes what the window has of whole strips the fast way, and what lies around them unit by unit.
inline void encode_strips(const MetadataView& view, std::uint32_t* codes, const Window& window,
                          const ConstFloatMatrix& source) {
  const PackedLayout& layout = view.layout;
  const bool along_lanes = layout.along == GroupsAlong::lanes;
  const std::size_t lane_step = along_lanes ? layout.group : TileLanes, p_step = along_lanes ? StripP : layout.group;
  const bool fits =
      along_lanes ? layout.group % TileLanes == 0 : layout.group % StripP == 0 && layout.group <= LongestStripGroup;
  Window strips = {round_up(window.lane_begin, lane_step) - window.lane_begin, 0,
                   round_up(window.p_begin, p_step) - window.p_begin, 0};
  if (fits && strips.lane_begin < window.lanes && strips.p_begin < window.p_count) {
    strips.lanes = (window.lanes - strips.lane_begin) / lane_step * lane_step;
    strips.p_count = (window.p_count - strips.p_begin) / p_step * p_step;
  }
  if (strips.lanes == 0 || strips.p_count == 0) return encode_units(view, codes, window, source);
  const WindowPart part(window, source, strips);
  along_lanes ? encode_strips_along_lanes(view, codes, part) : encode_strips_along_p(view, codes, part);
  const std::size_t lanes_end = strips.lane_begin + strips.lanes, p_end = strips.p_begin + strips.p_count;
  const Window around[] = {{0, strips.lane_begin, 0, window.p_count},
                           {lanes_end, window.lanes - lanes_end, 0, window.p_count},
                           {strips.lane_begin, strips.lanes, 0, strips.p_begin},
                           {strips.lane_begin, strips.lanes, p_end, window.p_count - p_end}};
  for (const Window& side : around) {
    const WindowPart rest(window, source, side);
    if (side.lanes != 0 && side.p_count != 0) encode_units(view, codes, rest.window, rest.source);
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
