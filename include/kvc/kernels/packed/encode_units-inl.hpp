// What every way of quantizing into group-quantized blocks is made of. Re-included, no guard.
//
// Encoding is two passes. The first finds scale and minimum, 16 groups at a time (of 16 depths, or of 16 lanes); the second
// walks the dwords of a tile, where 16 lanes of one depth quantize at once and a plane is one shift. Every step is elementwise
// and correctly rounded, so codes, scales and minima are the same bits on every machine.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// Stores `count` (at most TileLanes) scales or minima `stride` apart.
inline void store_metadata(unsigned char* metadata, Scalar type, std::size_t index, const float* values,
                           std::size_t count, std::size_t stride) {
  if (type == Scalar::f32) return copy_elements_of<float>(values, 1, reinterpret_cast<float*>(metadata) + index, stride, count);
  std::uint16_t halves[TileLanes];
  encode_lanes<Scalar::f16>(values, halves);
  copy_elements_of<std::uint16_t>(halves, 1, reinterpret_cast<std::uint16_t*>(metadata) + index, stride, count);
}

/// The scales and minima of a block that is being written.
struct MetadataTarget : MetadataView {
  unsigned char* first_scale;

  MetadataTarget(const PackedLayout& packed, void* block)
      : MetadataView(packed, block), first_scale(static_cast<unsigned char*>(block) + packed.scale_offset()) {}

  /// Stores scales and minima of `count` (at most TileLanes) groups with elements from `low` to `high`, numbers `index`,
  /// `index + stride`, ..., and returns what will be read back. low and high have whole tiles.
  void put(std::size_t index, std::size_t stride, const float* low, const float* high, std::size_t count, float* scale,
           float* minimum_of_group) const {
    const float top = static_cast<float>((1u << layout.bits) - 1), most = largest_magnitude(layout.metadata);
    float wrong[TileLanes];  // above 0 where the codes of a group's ends would be wrong by more than half a step
    Vector worst = zero();
    for (std::size_t i = 0; i < TileLanes; i += Width) {
      const Vector from = add(load(low + i), zero());  // -0 becomes 0: which of both came first must not matter
      const Vector to = load(high + i);
      store(scale + i, divide(subtract(to, from), set(top)));
      store(minimum_of_group + i, from);
      if (layout.metadata == Scalar::f16) {
        round_to_half(scale + i);
        round_to_half(minimum_of_group + i);
      }
      const Vector step = load(scale + i), first = load(minimum_of_group + i);
      const Vector below = subtract(subtract(first, from), opaque(multiply(set(0.5f), step)));
      const Vector above = subtract(subtract(to, first), opaque(multiply(set(top + 0.5f), step)));
      // A group of equal elements keeps scale 0: it reads back as that element, rounded.
      const Vector clamped = select_less(from, to, maximum(below, above), zero());
      const Vector magnitude = maximum(maximum(first, subtract(zero(), first)), step);
      const Vector most_wrong = maximum(subtract(magnitude, set(most)), clamped);
      store(wrong + i, most_wrong);
      worst = maximum(most_wrong, worst);
    }
    if (max_of(worst) > 0) {
      for (std::size_t i = 0; i < count; ++i) {
        if (!(wrong[i] > 0)) continue;
        const GroupRange range = covering_range(low[i], high[i], layout.bits, layout.metadata);
        scale[i] = range.scale;
        minimum_of_group[i] = range.minimum;
      }
    }
    store_metadata(first_scale, layout.metadata, index, scale, count, stride);
    store_metadata(first_scale + (minima - scales), layout.metadata, index, minimum_of_group, count, stride);
  }

 private:
  static void round_to_half(float* values) {
    std::uint16_t halves[Width];
    store_half(halves, load(values));
    store(values, load_half(halves));
  }
};

/// Up to 16 × 16 elements that lie in columns, as rows[e][c]: element e of column c is source[c * column_stride + e *
/// element_stride]. In place where a row is contiguous, turned where a column is, else gathered.
struct TileRows {
  float turned[TileLanes * TileLanes];
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

/// Smallest and largest element of up to 16 groups, one a column.
struct Ranges {
  float low[TileLanes], high[TileLanes];

  Ranges() {
    for (std::size_t i = 0; i < TileLanes; i += Width) {
      store(low + i, set(__builtin_inff()));
      store(high + i, set(-__builtin_inff()));
    }
  }
  void take(const TileRows& rows, std::size_t elements) {
    KVC_UNROLL
    for (std::size_t i = 0; i < TileLanes; i += Width) {
      Vector least = load(low + i), most = load(high + i);
      for (std::size_t e = 0; e < elements; ++e) {
        const Vector value = load(rows[e] + i);
        least = minimum(value, least);
        most = maximum(value, most);
      }
      store(low + i, least);
      store(high + i, most);
    }
  }
  /// The elements of up to 16 groups: column c of group element e is source[c * column_stride + e * element_stride].
  void find(const float* source, std::size_t column_stride, std::size_t columns, std::size_t element_stride,
            std::size_t elements) {
    TileRows rows;
    for (std::size_t begin = 0; begin < elements; begin += TileLanes) {
      const std::size_t count = smaller(TileLanes, elements - begin);
      rows.fetch(source + begin * element_stride, column_stride, columns, element_stride, count);
      take(rows, count);
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
      view.put(layout.metadata_index(d, lane), 1, ranges.low, ranges.high, count, scale, low);
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
