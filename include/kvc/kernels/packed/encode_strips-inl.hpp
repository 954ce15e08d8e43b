// Quantizing areas in whole strips. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

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

/// The part of an area, and of its source, that begins `part.lane_begin` lanes and `part.depth_begin` depths inside it.
struct AreaPart {
  Area area;
  ConstFloatMatrix source;

  AreaPart(const Area& whole, const ConstFloatMatrix& all, const Area& part)
      : area{whole.lane_begin + part.lane_begin, part.lanes, whole.depth_begin + part.depth_begin, part.depth_count},
        source{all.data + part.lane_begin * all.lane_stride + part.depth_begin * all.depth_stride, all.depth_stride,
               all.lane_stride} {}
};

/// Groups along lanes: every group of lanes × 32 depths, whose scales serve all its tiles.
inline void encode_strips_along_lanes(const MetadataTarget& view, std::uint32_t* codes, const AreaPart& part,
                                      StripEncoder encode) {
  const auto& [area, source] = part;
  const PackedLayout& layout = view.layout;
  const bool divides = layout.metadata == Scalar::f32;
  const std::size_t tile_dwords = layout.dword_rows() * TileLanes;
  Strip strip;
  for (std::size_t lane = 0; lane < area.lanes; lane += layout.group) {
    std::uint32_t* target = codes + layout.code_place(area.depth_begin, area.lane_begin + lane).dword;
    for (std::size_t d = 0; d < area.depth_count; d += StripDepth, target += StripDepth * layout.bits / 32 * TileLanes) {
      const float* from = source.data + lane * source.lane_stride + d * source.depth_stride;
      for (std::size_t c = 0; c < StripDepth; c += TileLanes) {
        Ranges ranges;
        ranges.find(from + c * source.depth_stride, source.depth_stride, TileLanes, source.lane_stride, layout.group);
        view.put(layout.metadata_index(area.depth_begin + d + c, area.lane_begin + lane), 1, ranges, TileLanes,
                 strip.scale + c, strip.low + c);
      }
      if (!invert(strip, StripDepth)) {
        const AreaPart rest(area, source, {lane, layout.group, d, StripDepth});
        encode_units(view, codes, rest.area, rest.source);
        continue;
      }
      for (std::size_t tile = 0; tile < layout.tiles_per_group(); ++tile) {
        for (std::size_t i = 0; i < StripDepth / TileLanes; ++i)
          strip.rows[i].fetch(from + tile * TileLanes * source.lane_stride + i * TileLanes * source.depth_stride,
                              source.lane_stride, TileLanes, source.depth_stride, TileLanes);
        encode(strip, strip, divides, target + tile * tile_dwords);
      }
    }
  }
}

/// Groups along the depth: 16 lanes × every group, whose elements are fetched once for their range and their codes.
inline constexpr std::size_t LongestStripGroup = 4 * StripDepth;
inline void encode_strips_along_depth(const MetadataTarget& view, std::uint32_t* codes, const AreaPart& part,
                                      StripEncoder encode) {
  const auto& [area, source] = part;
  const PackedLayout& layout = view.layout;
  const bool divides = layout.metadata == Scalar::f32;
  Strip strips[LongestStripGroup / StripDepth];
  Strip& first = strips[0];
  for (std::size_t lane = 0; lane < area.lanes; lane += TileLanes) {
    std::uint32_t* target = codes + layout.code_place(area.depth_begin, area.lane_begin + lane).dword;
    for (std::size_t d = 0; d < area.depth_count; d += layout.group) {
      Ranges ranges;
      for (std::size_t i = 0; i < layout.group; i += TileLanes) {
        TileRows& rows = strips[i / StripDepth].rows[i % StripDepth / TileLanes];
        rows.fetch(source.data + lane * source.lane_stride + (d + i) * source.depth_stride, source.lane_stride,
                   TileLanes, source.depth_stride, TileLanes);
        ranges.take(rows, TileLanes);
      }
      view.put(layout.metadata_index(area.depth_begin + d, area.lane_begin + lane), 1, ranges, TileLanes,
               first.scale, first.low);
      const std::size_t strip_dwords = StripDepth * layout.bits / 32 * TileLanes, count = layout.group / StripDepth;
      if (invert(first, TileLanes)) {
        for (std::size_t i = 0; i < count; ++i) encode(strips[i], first, divides, target + i * strip_dwords);
      } else {
        const AreaPart rest(area, source, {lane, TileLanes, d, layout.group});
        encode_units(view, codes, rest.area, rest.source);
      }
      target += count * strip_dwords;
    }
  }
}

/// Encodes what the area has of whole strips the fast way, and what lies around them unit by unit.
inline void encode_strips(const MetadataTarget& view, std::uint32_t* codes, const Area& area,
                          const ConstFloatMatrix& source, const StripEncoders& encoders) {
  const PackedLayout& layout = view.layout;
  const bool along_lanes = layout.along == GroupsAlong::lanes;
  const std::size_t lane_step = along_lanes ? layout.group : TileLanes;
  const std::size_t depth_step = along_lanes ? StripDepth : layout.group;
  const bool fits = along_lanes ? layout.group % TileLanes == 0
                                : layout.group % StripDepth == 0 && layout.group <= LongestStripGroup;
  Area strips = {round_up(area.lane_begin, lane_step) - area.lane_begin, 0,
                 round_up(area.depth_begin, depth_step) - area.depth_begin, 0};
  if (fits && strips.lane_begin < area.lanes && strips.depth_begin < area.depth_count) {
    strips.lanes = (area.lanes - strips.lane_begin) / lane_step * lane_step;
    strips.depth_count = (area.depth_count - strips.depth_begin) / depth_step * depth_step;
  }
  if (strips.lanes == 0 || strips.depth_count == 0) return encode_units(view, codes, area, source);
  const AreaPart part(area, source, strips);
  const StripEncoder encode = encoders.get(along_lanes, layout.bits);
  along_lanes ? encode_strips_along_lanes(view, codes, part, encode)
              : encode_strips_along_depth(view, codes, part, encode);
  const std::size_t lanes_end = strips.lane_begin + strips.lanes, depth_end = strips.depth_begin + strips.depth_count;
  const Area around[] = {{0, strips.lane_begin, 0, area.depth_count},
                         {lanes_end, area.lanes - lanes_end, 0, area.depth_count},
                         {strips.lane_begin, strips.lanes, 0, strips.depth_begin},
                         {strips.lane_begin, strips.lanes, depth_end, area.depth_count - depth_end}};
  for (const Area& side : around) {
    const AreaPart rest(area, source, side);
    if (side.lanes != 0 && side.depth_count != 0) encode_units(view, codes, rest.area, rest.source);
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
