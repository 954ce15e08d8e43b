// Reading group-quantized blocks back as floats. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// Lanes [lane, lane + count) of a block lie in one tile, from its lane `first` on.
struct TileSpan {
  std::size_t lane, first, count;
};

/// The lanes from `lane` on, up to lane_end, that lie in the tile of the first one.
inline TileSpan span_at(const PackedLayout& layout, std::size_t lane, std::size_t lane_end) {
  const bool along_lanes = layout.along == GroupsAlong::lanes;
  const std::size_t in_group = along_lanes ? lane % layout.group : lane, first = in_group % TileLanes;
  const std::size_t left = lane_end - lane, in_tile = TileLanes - first;
  return {lane, first, smaller(in_tile, along_lanes ? smaller(layout.group - in_group, left) : left)};
}

/// The scales and minima of a block.
struct MetadataView {
  const PackedLayout& layout;
  const unsigned char *scales, *minima;

  MetadataView(const PackedLayout& packed, const void* block)
      : layout(packed),
        scales(static_cast<const unsigned char*>(block) + packed.scale_offset()),
        minima(static_cast<const unsigned char*>(block) + packed.minimum_offset()) {}

  /// Reads those of `count` (at most TileLanes) neighbours from element (d, lane) on, and zeros up to a whole tile. Neighbours
  /// follow each other along the depth if groups lie along the lanes, and the other way round: each has a group of its own.
  void get(std::size_t d, std::size_t lane, std::size_t count, float* scale, float* minimum_of_group) const {
    const std::size_t index = layout.metadata_index(d, lane);
    for (std::size_t i = 0; i < TileLanes; i += Width) {
      const std::size_t left = i < count ? count - i : 0;
      store(scale + i, load_metadata(scales, layout.metadata, index + i, left));
      store(minimum_of_group + i, load_metadata(minima, layout.metadata, index + i, left));
    }
  }
};

/// Reads the depths of an area for the lanes of one span: whole tiles in place where the target's lanes follow each other,
/// others through a buffer.
inline void decode_span(const MetadataView& view, const std::uint32_t* codes, const Area& area, const TileSpan& span,
                        const FloatMatrix& target) {
  const PackedLayout& layout = view.layout;
  const bool along_lanes = layout.along == GroupsAlong::lanes, in_place = span.count == TileLanes && target.lane_stride == 1;
  const std::size_t depth_end = area.depth_begin + area.depth_count;
  const Words mask = words((1u << layout.low_bits()) - 1);
  float scale[TileLanes], low[TileLanes], values[TileLanes];
  float* to = target.data + (span.lane - area.lane_begin) * target.lane_stride;
  PackedLayout::CodePlace place{0, layout.planes()};
  for (std::size_t d = area.depth_begin; d < depth_end; ++d, ++place.plane, to += target.depth_stride) {
    const bool starts_group = !along_lanes && d % layout.group == 0;
    if (place.plane == layout.planes() || starts_group) place = layout.code_place(d, span.lane);
    const std::size_t of_tile = along_lanes ? (d - area.depth_begin) % TileLanes : 0;
    if (d == area.depth_begin || starts_group || (along_lanes && of_tile == 0)) {
      if (along_lanes)
        view.get(d, span.lane, smaller(TileLanes, depth_end - d), scale, low);
      else
        view.get(d, span.lane - span.first, TileLanes, scale, low);
    }
    const PackedLayout::PlanePlace bit = layout.plane_place(place.plane);
    const std::uint32_t* unit = codes + place.dword - span.first;
    float* floats = in_place ? to : values;
    KVC_UNROLL
    for (std::size_t i = 0; i < TileLanes; i += Width) {
      Words code = bit_and(shift_right_by(load_words(unit + bit.row * TileLanes + i), bit.shift), mask);
      if (layout.bits == 3) {
        const Words high = shift_right_by(load_words(unit + bit.high_row * TileLanes + i), bit.high_shift);
        code = bit_or(code, shift_left<2>(bit_and(high, words(1))));
      }
      const Vector scales = along_lanes ? set(scale[of_tile]) : load(scale + i);
      const Vector minima = along_lanes ? set(low[of_tile]) : load(low + i);
      // Two roundings, here as everywhere: a fused one would differ between machines with and without FMA.
      store(floats + i, add(opaque(multiply(to_float(code), scales)), minima));
    }
    if (!in_place)
      for (std::size_t i = 0; i < span.count; ++i) to[i * target.lane_stride] = values[span.first + i];
  }
}

inline void packed_decode(const PackedLayout& layout, const void* block, const Area& area, const FloatMatrix& target) {
  const MetadataView view(layout, block);
  const std::size_t lane_end = area.lane_begin + area.lanes;
  for (std::size_t lane = area.lane_begin; lane < lane_end;) {
    const TileSpan span = span_at(layout, lane, lane_end);
    decode_span(view, static_cast<const std::uint32_t*>(block), area, span, target);
    lane += span.count;
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
