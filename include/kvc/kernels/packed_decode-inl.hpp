// Reading group-quantized blocks back as floats. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline void decode_span(const MetadataView& view, const std::uint32_t* codes, const Window& window,
                        const TileSpan& span, const FloatMatrix& target) {
  const PackedLayout& layout = view.layout;
  const bool along_lanes = layout.along == GroupsAlong::lanes;
  const std::size_t p_end = window.p_begin + window.p_count;
  float scale[TileLanes], low[TileLanes];
  const Words mask = words((1u << layout.low_bits()) - 1);
  std::uint32_t dwords[TileLanes] = {}, high_dwords[TileLanes] = {};
  float values[TileLanes];
  for (std::size_t p = window.p_begin; p < p_end; ++p) {
    const std::size_t step = (p - window.p_begin) % TileLanes;
    const PackedLayout::CodePlace place = layout.code_place(p, span.lane);
    if (along_lanes && step == 0) view.get(p, span.lane, smaller(TileLanes, p_end - p), scale, low);
    if (!along_lanes && (p == window.p_begin || p % layout.group == 0)) view.get(p, span.lane, span.count, scale, low);
    const PackedLayout::PlanePlace bit = layout.plane_place(place.plane);
    for (std::size_t i = 0; i < span.count; ++i) {
      dwords[i] = codes[place.dword + bit.row * TileLanes + i];
      high_dwords[i] = codes[place.dword + bit.high_row * TileLanes + i];
    }
    float* to =
        target.data + (p - window.p_begin) * target.p_stride + (span.lane - window.lane_begin) * target.lane_stride;
    const bool in_place = span.count == TileLanes && target.lane_stride == 1;
    for (std::size_t i = 0; i < TileVectors; ++i) {
      Words codes_of_p = bit_and(shift_right_by(load_words(dwords + i * Width), bit.shift), mask);
      if (layout.bits == 3) {
        const Words high = bit_and(shift_right_by(load_words(high_dwords + i * Width), bit.high_shift), words(1));
        codes_of_p = bit_or(codes_of_p, shift_left_by(high, 2));
      }
      const Vector code = to_float(codes_of_p);
      const Vector scales = along_lanes ? set(scale[step]) : load(scale + i * Width);
      const Vector minima = along_lanes ? set(low[step]) : load(low + i * Width);
      // Two roundings, here as everywhere: a fused one would differ between machines with and without FMA.
      store((in_place ? to : values) + i * Width, add(opaque(multiply(code, scales)), minima));
    }
    if (!in_place)
      for (std::size_t i = 0; i < span.count; ++i) to[i * target.lane_stride] = values[i];
  }
}

inline void packed_decode(const PackedLayout& layout, const void* block, const Window& window,
                          const FloatMatrix& target) {
  const MetadataView view(layout, const_cast<void*>(block));  // only read from here on
  const std::uint32_t* codes = static_cast<const std::uint32_t*>(block);
  const std::size_t lane_end = window.lane_begin + window.lanes;
  for (std::size_t lane = window.lane_begin; lane < lane_end;) {
    const TileSpan span = span_at(layout, lane, lane_end);
    decode_span(view, codes, window, span, target);
    lane += span.count;
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
