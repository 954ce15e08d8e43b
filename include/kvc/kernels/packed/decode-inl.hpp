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

/// Planes [begin, end) of one unit of a tile as floats, `stride` floats apart. Scales and minima are those of the planes from
/// `begin` on (along lanes), or of the lanes.
template <unsigned Bits, bool AlongLanes>
void decode_unit(const std::uint32_t* unit, std::size_t begin, std::size_t end, const float* scale, const float* low,
                 float* to, std::size_t stride) {
  constexpr PackedLayout Layout{.bits = Bits};
  const PackedLayout::PlanePlace first = Layout.plane_place(begin);
  for (std::size_t i = 0; i < TileLanes; i += Width) {
    const Vector lane_scale = load(scale + i), lane_low = load(low + i);
    Words dwords = shift_right_by(load_words(unit + first.row * TileLanes + i), first.shift);
    float* floats = to + i;
    KVC_UNROLL_SOME
    for (std::size_t plane = begin; plane < end; ++plane, floats += stride) {
      Vector code;
      if constexpr (Bits == 3) {
        if (plane == 16) dwords = load_words(unit + TileLanes + i);
        const Words high = shift_right_by(load_words(unit + 2 * TileLanes + i), Layout.plane_place(plane).high_shift);
        code = to_float(bit_or(bit_and(dwords, words(3)), shift_left<2>(bit_and(high, words(1)))));
      } else {
        code = low_codes<Bits>(dwords);
      }
      dwords = shift_right<Layout.low_bits()>(dwords);
      const Vector scales = AlongLanes ? set(scale[plane - begin]) : lane_scale;
      const Vector minima = AlongLanes ? set(low[plane - begin]) : lane_low;
      // Two roundings, here as everywhere: a fused one would differ between machines with and without FMA.
      store(floats, add(opaque(multiply(code, scales)), minima));
    }
  }
}

using UnitDecoder = void (*)(const std::uint32_t*, std::size_t, std::size_t, const float*, const float*, float*,
                             std::size_t);
template <bool AlongLanes>
UnitDecoder unit_decoder(unsigned bits) {
  return bits == 2   ? decode_unit<2, AlongLanes>
         : bits == 3 ? decode_unit<3, AlongLanes>
         : bits == 4 ? decode_unit<4, AlongLanes>
                     : decode_unit<8, AlongLanes>;
}

/// Reads the depths of an area for the lanes of one span: whole tiles in place where the target's lanes follow each other,
/// others through a buffer.
inline void decode_span(const MetadataView& view, const std::uint32_t* codes, const Area& area, const TileSpan& span,
                        const FloatMatrix& target) {
  constexpr std::size_t MostPlanes = 32, MetadataDepth = 64;  // scales and minima along the depth are read 64 at a time
  const PackedLayout& layout = view.layout;
  const bool along_lanes = layout.along == GroupsAlong::lanes;
  const bool in_place = span.count == TileLanes && target.lane_stride == 1;
  const std::size_t depth_end = area.depth_begin + area.depth_count;
  const UnitDecoder decode = along_lanes ? unit_decoder<true>(layout.bits) : unit_decoder<false>(layout.bits);
  float scale[MetadataDepth + TileLanes] = {}, low[MetadataDepth + TileLanes] = {}, values[MostPlanes * TileLanes];
  float* to = target.data + (span.lane - area.lane_begin) * target.lane_stride;
  const PackedLayout::CodePlace place = layout.code_place(area.depth_begin, span.lane);
  const std::uint32_t* unit = codes + place.dword - span.first;
  std::size_t plane = place.plane, metadata_end = area.depth_begin, offset = 0;
  for (std::size_t d = area.depth_begin; d < depth_end;) {
    if (d == metadata_end) {
      offset = 0;
      if (along_lanes) {
        metadata_end = smaller(d + MetadataDepth - plane, depth_end);
        for (std::size_t i = 0; i < metadata_end - d; i += TileLanes)
          view.get(d + i, span.lane, smaller(TileLanes, metadata_end - d - i), scale + i, low + i);
      } else {
        metadata_end = smaller((d / layout.group + 1) * layout.group, depth_end);
        view.get(d, span.lane - span.first, TileLanes, scale, low);
      }
    }
    const std::size_t count = smaller(layout.planes() - plane, metadata_end - d);
    decode(unit, plane, plane + count, scale + offset, low + offset, in_place ? to : values,
           in_place ? target.depth_stride : TileLanes);
    for (std::size_t at = 0; at < count && !in_place; ++at)
      for (std::size_t i = 0; i < span.count; ++i)
        to[at * target.depth_stride + i * target.lane_stride] = values[at * TileLanes + span.first + i];
    to += count * target.depth_stride;
    d += count;
    if (along_lanes) offset += count;
    unit += layout.unit_rows() * TileLanes;  // a group begins with a unit of its own
    plane = 0;
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
