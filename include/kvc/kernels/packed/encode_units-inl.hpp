// What every way of quantizing into group-quantized blocks is made of. Re-included, no guard.
//
// Encoding is two passes. The first finds scale and minimum, 16 groups at a time (of 16 depths, or of 16 lanes); the second
// walks the dwords of a tile, where 16 lanes of one depth quantize at once and a plane is one shift. Every step is elementwise
// and correctly rounded, so codes, scales and minima are the same bits on every machine.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// Up to 16 × 16 elements that lie in columns, as rows[e][c]: element e of column c is source[c * column_stride + e *
/// element_stride]. In place where a row is contiguous, turned where a column is, else gathered.
struct TileRows {
  alignas(64) float turned[TileLanes * TileLanes];
  const float* first = turned;
  std::size_t stride = TileLanes;

  void fetch(const float* source, std::size_t column_stride, std::size_t columns, std::size_t element_stride,
             std::size_t elements) {
    first = turned;
    stride = TileLanes;
    if (column_stride == 1 && columns == TileLanes) {
      first = source;
      stride = element_stride;
    } else if (element_stride == 1 && columns == TileLanes && elements == TileLanes) {
      transpose_tile(source, column_stride, turned);
    } else {
      for (std::size_t e = 0; e < elements; ++e)
        for (std::size_t c = 0; c < TileLanes; ++c)
          turned[e * TileLanes + c] = c < columns ? source[c * column_stride + e * element_stride] : 0.0f;
    }
  }
  const float* operator[](std::size_t e) const { return first + e * stride; }
};

/// A strip is 16 lanes × 32 consecutive depths, whole units of every width, with the metadata of its elements: one scale a
/// depth (groups along lanes) or one a lane (groups along the depth, of which only the first TileLanes count).
inline constexpr std::size_t StripDepth = 32;
struct Strip {
  TileRows rows[StripDepth / TileLanes];
  alignas(64) float scale[StripDepth], low[StripDepth], minus_scale[StripDepth], inverse[StripDepth];
};

using StripEncoder = void (*)(const Strip&, const Strip&, bool divides, std::uint32_t*);
/// The functions that quantize a strip, of both directions and all widths.
struct StripEncoders {
  StripEncoder of[2][4];  // [groups along lanes][2, 3, 4, 8 bits]

  StripEncoder get(bool along_lanes, unsigned bits) const { return of[along_lanes][bits == 8 ? 3 : bits - 2]; }
};

/// Smallest and largest element of up to 16 groups, one a column.
struct Ranges {
  Vector low[TileVectors], high[TileVectors];

  KVC_ALWAYS_INLINE Ranges() {
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) {
      low[i] = set(__builtin_inff());
      high[i] = set(-__builtin_inff());
    }
  }
  KVC_ALWAYS_INLINE void take(const TileRows& rows, std::size_t elements) {
    for (std::size_t e = 0; e < elements; ++e) {
      KVC_UNROLL
      for (std::size_t i = 0; i < TileVectors; ++i) {
        const Vector value = load(rows[e] + i * Width);
        low[i] = minimum(value, low[i]);
        high[i] = maximum(value, high[i]);
      }
    }
  }
  /// The elements of up to 16 groups: column c of group element e is source[c * column_stride + e * element_stride].
  KVC_ALWAYS_INLINE void find(const float* source, std::size_t column_stride, std::size_t columns,
                              std::size_t element_stride, std::size_t elements) {
    TileRows rows;
    for (std::size_t begin = 0; begin < elements; begin += TileLanes) {
      const std::size_t count = smaller(TileLanes, elements - begin);
      rows.fetch(source + begin * element_stride, column_stride, columns, element_stride, count);
      take(rows, count);
    }
  }
};

/// Scales or minima of up to TileLanes groups: as floats, and as they are stored.
struct MetadataTile {
  float* values;
  alignas(64) std::uint16_t halves[TileLanes];  // where the type is f16

  /// Rounds the values from number i on to halves.
  KVC_ALWAYS_INLINE void round_to_half(std::size_t i) {
    store_half(halves + i, load(values + i));
    store(values + i, load_half(halves + i));
  }
  void write(unsigned char* metadata, Scalar type, std::size_t index, std::size_t count, std::size_t stride) const {
    unsigned char* to = metadata + index * scalar_bytes(type);
    if (type == Scalar::f32) return copy_elements_of<float>(values, 1, to, stride, count);
    if (count < TileLanes || stride != 1) return copy_elements_of<std::uint16_t>(halves, 1, to, stride, count);
    __builtin_memcpy(to, halves, sizeof halves);
  }
};

/// The scales and minima of a block that is being written.
struct MetadataTarget : MetadataView {
  unsigned char *scales_to, *minima_to;

  MetadataTarget(const PackedLayout& packed, void* block)
      : MetadataView(packed, block),
        scales_to(static_cast<unsigned char*>(block) + packed.scale_offset()),
        minima_to(static_cast<unsigned char*>(block) + packed.minimum_offset()) {}

  /// Stores scales and minima of `count` (at most TileLanes) groups, numbers `index`, `index + stride`, ..., and returns what will
  /// be read back.
  KVC_ALWAYS_INLINE void put(std::size_t index, std::size_t stride, const Ranges& ranges, std::size_t count,
                             float* scale, float* minimum_of_group) const {
    const Vector top = set(static_cast<float>((1u << layout.bits) - 1)), most = set(largest_magnitude(layout.metadata));
    MetadataTile steps{scale, {}}, firsts{minimum_of_group, {}};
    // The codes of a group's ends are right to half a step where rounding moved the minimum by less than a quarter of a step and the
    // scale is a normal half; where that is not sure, cover() looks closer.
    Vector suspect = zero();
    KVC_UNROLL
    for (std::size_t k = 0; k < TileVectors; ++k) {
      const std::size_t i = k * Width;
      const Vector from = add(ranges.low[k], zero());  // -0 becomes 0: which of both came first must not matter
      store(scale + i, divide(subtract(ranges.high[k], from), top));
      store(minimum_of_group + i, from);
      if (layout.metadata == Scalar::f16) {
        steps.round_to_half(i);
        firsts.round_to_half(i);
      }
      const Vector step = load(scale + i), first = load(minimum_of_group + i);
      const Vector magnitude = float_of(bit_and(bits_of(first), words(0x7fffffffu)));
      const Vector needed = maximum(multiply(magnitude, set(0x1p-9f)), set(0x1p-14f));
      suspect = maximum(maximum(subtract(needed, step), subtract(step, most)), suspect);
    }
    if (max_of(suspect) > 0) cover(steps, firsts, ranges);
    steps.write(scales_to, layout.metadata, index, count, stride);
    firsts.write(minima_to, layout.metadata, index, count, stride);
  }

 private:
  /// Above 0 where the codes of the ends of a group, of elements from `from` to `to`, would be wrong by more than half a step, or
  /// where scale or minimum are not finite. A group of equal elements keeps scale 0: it reads back as that element, rounded.
  KVC_ALWAYS_INLINE static Vector wrong_by(Vector from, Vector to, Vector step, Vector first, Vector top, Vector most) {
    const Vector half = opaque(multiply(set(0.5f), step)), reach = opaque(multiply(top, step));
    const Vector below = subtract(subtract(first, from), half);
    const Vector above = subtract(subtract(subtract(to, first), reach), half);
    const Vector clamped = select_less(from, to, maximum(below, above), zero());
    const Vector magnitude = maximum(maximum(first, subtract(zero(), first)), step);
    return maximum(clamped, subtract(magnitude, most));  // in this order: the first may be a NaN
  }
  /// Chooses scale and minimum anew for the groups that need it.
  __attribute__((noinline)) void cover(MetadataTile& steps, MetadataTile& firsts, const Ranges& ranges) const {
    const float top = static_cast<float>((1u << layout.bits) - 1), most = largest_magnitude(layout.metadata);
    float wrong[TileLanes], low[TileLanes], high[TileLanes];
    for (std::size_t k = 0; k < TileVectors; ++k) {
      const std::size_t i = k * Width;
      store(low + i, add(ranges.low[k], zero()));
      store(high + i, ranges.high[k]);
      store(wrong + i, wrong_by(load(low + i), load(high + i), load(steps.values + i), load(firsts.values + i),
                                set(top), set(most)));
    }
    for (std::size_t i = 0; i < TileLanes; ++i) {
      if (!(wrong[i] > 0)) continue;
      const GroupRange range = covering_range(low[i], high[i], layout.bits, layout.metadata);
      steps.values[i] = range.scale;
      firsts.values[i] = range.minimum;
      steps.halves[i] = to_half(range.scale);
      firsts.halves[i] = to_half(range.minimum);
    }
  }
};

inline void encode_metadata(const MetadataTarget& view, const Area& area, const ConstFloatMatrix& source) {
  const PackedLayout& layout = view.layout;
  const bool along_lanes = layout.along == GroupsAlong::lanes;
  const std::size_t columns = along_lanes ? area.depth_count : area.lanes;
  const std::size_t elements = along_lanes ? area.lanes : area.depth_count;
  const std::size_t column_stride = along_lanes ? source.depth_stride : source.lane_stride;
  const std::size_t element_stride = along_lanes ? source.lane_stride : source.depth_stride;
  float scale[TileLanes], low[TileLanes];
  for (std::size_t e = 0; e < elements; e += layout.group) {
    for (std::size_t c = 0; c < columns; c += TileLanes) {
      const std::size_t count = smaller(TileLanes, columns - c);
      Ranges ranges;
      ranges.find(source.data + c * column_stride + e * element_stride, column_stride, count, element_stride,
                  smaller(layout.group, elements - e));
      const std::size_t d = area.depth_begin + (along_lanes ? c : e), lane = area.lane_begin + (along_lanes ? e : c);
      view.put(layout.metadata_index(d, lane), 1, ranges, count, scale, low);
    }
  }
}

/// Codes of 16 lanes of one depth: clamp((x - minimum) / scale) rounded half to even; 0 where the scale is 0.
KVC_ALWAYS_INLINE Words quantize(Vector x, Vector scale, Vector low, Vector levels) {
  const Vector ratio = divide(subtract(x, low), scale);
  // minimum() and maximum() return their second operand for a NaN, so a NaN becomes the highest code.
  const Vector code = round_even(maximum(minimum(ratio, levels), zero()));
  return to_words(select_less(zero(), scale, code, zero()));
}

/// The bits of a unit's planes before `plane`, row by row: codes that were written before and stay.
inline void planes_before(const PackedLayout& layout, std::size_t plane, std::uint32_t* kept) {
  for (std::size_t before = 0; before < plane; ++before) {
    const PackedLayout::PlanePlace bit = layout.plane_place(before);
    kept[bit.row] |= ((1u << layout.low_bits()) - 1) << bit.shift;
    if (layout.bits == 3) kept[bit.high_row] |= 1u << bit.high_shift;
  }
}

inline constexpr std::size_t MaxUnitRows = 3;

/// Writes the unit of dword rows that holds depth d from d on, for the lanes of one span; returns the first depth it did not
/// write.
inline std::size_t encode_unit(const MetadataTarget& view, std::uint32_t* codes, const Area& area,
                               const TileSpan& span, std::size_t d, const ConstFloatMatrix& source) {
  const PackedLayout& layout = view.layout;
  const PackedLayout::CodePlace place = layout.code_place(d, span.lane);
  const std::size_t unit_rows = layout.unit_rows();
  const bool along_lanes = layout.along == GroupsAlong::lanes;
  const std::size_t group_end = along_lanes ? d + layout.planes() : (d / layout.group + 1) * layout.group;
  const std::size_t end =
      smaller(smaller(group_end, area.depth_begin + area.depth_count), d + layout.planes() - place.plane);
  std::uint32_t* target = codes + place.dword;
  // Planes before the area keep their codes (tokens appended one by one); planes behind it become zero.
  std::uint32_t kept[MaxUnitRows] = {};
  planes_before(layout, place.plane, kept);
  std::uint32_t dwords[MaxUnitRows][TileLanes] = {};
  for (std::size_t row = 0; row < unit_rows; ++row)
    if (kept[row] != 0)
      for (std::size_t i = 0; i < span.count; ++i) dwords[row][i] = target[row * TileLanes + i] & kept[row];
  const Vector levels = set(static_cast<float>((1u << layout.bits) - 1));
  const Words low_mask = words((1u << layout.low_bits()) - 1);
  float scale[TileLanes], low[TileLanes], buffer[TileLanes];
  for (std::size_t at = d; at < end; ++at) {
    const std::size_t of_tile = along_lanes ? (at - d) % TileLanes : 0;
    if (at == d || (along_lanes && of_tile == 0))
      view.get(at, span.lane, along_lanes ? smaller(TileLanes, end - at) : span.count, scale, low);
    const float* from = source.data + (at - area.depth_begin) * source.depth_stride +
                        (span.lane - area.lane_begin) * source.lane_stride;
    const float* x = contiguous(from, source.lane_stride, span.count, buffer);
    const PackedLayout::PlanePlace bit = layout.plane_place(place.plane + at - d);
    for (std::size_t i = 0; i < TileLanes; i += Width) {
      const Vector scales = along_lanes ? set(scale[of_tile]) : load(scale + i);
      const Vector minima = along_lanes ? set(low[of_tile]) : load(low + i);
      const Words code = quantize(load(x + i), scales, minima, levels);
      const auto put = [&](std::size_t row, Words part, unsigned shift) KVC_LAMBDA_INLINE {
        store_words(dwords[row] + i, bit_or(load_words(dwords[row] + i), shift_left_by(part, shift)));
      };
      put(bit.row, bit_and(code, low_mask), bit.shift);
      if (layout.bits == 3) put(bit.high_row, shift_right<2>(code), bit.high_shift);
    }
  }
  for (std::size_t row = 0; row < unit_rows; ++row)
    for (std::size_t i = 0; i < span.count; ++i) target[row * TileLanes + i] = dwords[row][i];
  return end;
}

/// Zeroes the lanes of a tile that belong to no element, once its last real lanes are written.
inline void clear_padding(const PackedLayout& layout, std::uint32_t* codes, const TileSpan& span,
                          std::size_t depth_begin, std::size_t depth_end) {
  const std::size_t used = span.first + span.count;
  const bool ends_group = layout.along == GroupsAlong::lanes && (span.lane + span.count) % layout.group == 0;
  if (used == TileLanes || !(ends_group || span.lane + span.count == layout.lanes)) return;
  for (std::size_t d = depth_begin; d < depth_end; ++d) {
    const std::size_t dword = layout.code_place(d, span.lane).dword - span.first;
    for (std::size_t row = 0; row < layout.unit_rows(); ++row)
      for (std::size_t i = used; i < TileLanes; ++i) codes[dword + row * TileLanes + i] = 0;
  }
}

/// Encodes an area of any shape, unit by unit.
inline void encode_units(const MetadataTarget& view, std::uint32_t* codes, const Area& area,
                         const ConstFloatMatrix& source) {
  encode_metadata(view, area, source);
  const std::size_t lane_end = area.lane_begin + area.lanes, depth_end = area.depth_begin + area.depth_count;
  for (std::size_t lane = area.lane_begin; lane < lane_end;) {
    const TileSpan span = span_at(view.layout, lane, lane_end);
    for (std::size_t d = area.depth_begin; d < depth_end;) d = encode_unit(view, codes, area, span, d, source);
    clear_padding(view.layout, codes, span, area.depth_begin, depth_end);
    lane += span.count;
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
