// What every way of quantizing into group-quantized blocks is made of. Re-included, no guard.
//
// Encoding is two passes. The first finds scale and minimum, 16 groups at a time (16 p, or 16 lanes); the second walks
// the dwords of a tile, where 16 lanes of one p quantize at once and a plane is one shift. Every step is elementwise
// and correctly rounded, so codes, scales and minima are the same bits on every machine.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// Lanes [lane, lane + count) of the block lie in one tile, from its lane `first` on.
struct TileSpan {
  std::size_t tile, first, lane, count;
};

inline TileSpan span_at(const PackedLayout& layout, std::size_t lane, std::size_t lane_end) {
  if (layout.along == GroupsAlong::p) {
    const std::size_t first = lane % TileLanes;
    return {lane / TileLanes, first, lane, smaller(TileLanes - first, lane_end - lane)};
  }
  const std::size_t in_group = lane % layout.group, first = in_group % TileLanes;
  const std::size_t left = smaller(layout.group - in_group, lane_end - lane);
  return {lane / layout.group * layout.tiles_per_group() + in_group / TileLanes, first, lane,
          smaller(TileLanes - first, left)};
}

/// Stores `count` (at most TileLanes) scales or minima `stride` apart, and replaces them in `values` by what was stored.
inline void store_metadata(unsigned char* metadata, Scalar type, std::size_t index, float* values, std::size_t count,
                           std::size_t stride = 1) {
  if (type == Scalar::f32) {
    float* to = static_cast<float*>(static_cast<void*>(metadata)) + index;
    for (std::size_t i = 0; i < count; ++i) to[i * stride] = values[i];
    return;
  }
  std::uint16_t halves[TileLanes];
  std::uint16_t* to = static_cast<std::uint16_t*>(static_cast<void*>(metadata)) + index;
  encode_run<Scalar::f16>(values, halves);
  decode_run<Scalar::f16>(halves, values);
  if (count == TileLanes && stride == 1) {
    __builtin_memcpy(to, halves, sizeof halves);
    return;
  }
  for (std::size_t i = 0; i < count; ++i) to[i * stride] = halves[i];
}

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
  KVC_ALWAYS_INLINE void metadata(unsigned bits, float* scale, float* minimum_of_group) const {
    const Vector levels = set(static_cast<float>((1u << bits) - 1));
    KVC_UNROLL
    for (std::size_t i = 0; i < TileVectors; ++i) {
      store(scale + i * Width, divide(subtract(high[i], low[i]), levels));
      store(minimum_of_group + i * Width,
            add(low[i], zero()));  // -0 becomes 0: which of both came first must not matter
    }
  }
};

/// Scale and minimum of up to 16 groups: column c of group element e is source[c * column_stride + e * element_stride].
inline void find_ranges(const float* source, std::size_t column_stride, std::size_t columns, std::size_t element_stride,
                        std::size_t elements, unsigned bits, float* scale, float* minimum_of_group) {
  TileRows rows;
  Ranges ranges;
  for (std::size_t begin = 0; begin < elements; begin += TileLanes) {
    const std::size_t count = smaller(TileLanes, elements - begin);
    rows.fetch(source + begin * element_stride, column_stride, columns, element_stride, count);
    ranges.take(rows, count);
  }
  ranges.metadata(bits, scale, minimum_of_group);
}

/// Scales and minima of one group (along lanes: for every p; along p: for every lane) as they will be read back.
struct MetadataView {
  const PackedLayout& layout;
  unsigned char *scales, *minima;

  MetadataView(const PackedLayout& packed, void* block)
      : layout(packed),
        scales(static_cast<unsigned char*>(block) + packed.scale_offset()),
        minima(static_cast<unsigned char*>(block) + packed.minimum_offset()) {}

  void put(std::size_t p, std::size_t lane, float* scale, float* minimum_of_group, std::size_t count) const {
    const std::size_t index = layout.metadata_index(p, lane);
    store_metadata(scales, layout.metadata, index, scale, count);
    store_metadata(minima, layout.metadata, index, minimum_of_group, count);
  }

  /// Of the element (p, lane) and the `count` - 1 that follow, along p or along the lanes, in groups of their own.
  void get(std::size_t p, std::size_t lane, std::size_t count, float* scale, float* minimum_of_group) const {
    const std::size_t index = layout.metadata_index(p, lane);
    read_metadata(scales, layout.metadata, index, count, scale);
    read_metadata(minima, layout.metadata, index, count, minimum_of_group);
  }
};

inline void encode_metadata(const MetadataView& view, const Window& window, const ConstFloatMatrix& source) {
  const PackedLayout& layout = view.layout;
  const bool along_lanes = layout.along == GroupsAlong::lanes;
  const std::size_t columns = along_lanes ? window.p_count : window.lanes;
  const std::size_t elements = along_lanes ? window.lanes : window.p_count;
  const std::size_t column_stride = along_lanes ? source.p_stride : source.lane_stride;
  const std::size_t element_stride = along_lanes ? source.lane_stride : source.p_stride;
  float scale[TileLanes], low[TileLanes];
  for (std::size_t e = 0; e < elements; e += layout.group) {
    for (std::size_t c = 0; c < columns; c += TileLanes) {
      const std::size_t count = smaller(TileLanes, columns - c);
      find_ranges(source.data + c * column_stride + e * element_stride, column_stride, count, element_stride,
                  smaller(layout.group, elements - e), layout.bits, scale, low);
      const std::size_t p = window.p_begin + (along_lanes ? c : e), lane = window.lane_begin + (along_lanes ? e : c);
      view.put(p, lane, scale, low, count);
    }
  }
}

/// Codes of 16 lanes of one p: clamp((x - minimum) / scale) rounded half to even; 0 where the scale is 0.
KVC_ALWAYS_INLINE Words quantize(Vector x, Vector scale, Vector low, Vector levels) {
  const Vector ratio = divide(subtract(x, low), scale);
  // minimum() and maximum() return their second operand for a NaN, so a NaN becomes the highest code.
  const Vector code = round_even(maximum(minimum(ratio, levels), zero()));
  return to_words(select_less(zero(), scale, code, zero()));
}

/// Writes the unit of dword rows that holds p from `p` on, for the lanes of one span; returns the first p it did not write.
inline std::size_t encode_unit(const MetadataView& view, std::uint32_t* codes, const Window& window,
                               const TileSpan& span, std::size_t p, const ConstFloatMatrix& source) {
  constexpr std::size_t MostRows = 3;
  const PackedLayout& layout = view.layout;
  const PackedLayout::CodePlace place = layout.code_place(p, span.lane);
  const std::size_t unit_rows = layout.unit_rows();
  const std::size_t group_end =
      layout.along == GroupsAlong::p ? (p / layout.group + 1) * layout.group : p + layout.planes();
  const std::size_t p_end =
      smaller(smaller(group_end, window.p_begin + window.p_count), p + layout.planes() - place.plane);
  std::uint32_t* target = codes + place.dword;
  // Planes before the window keep their codes (tokens appended one by one); planes behind it become zero.
  std::uint32_t kept[MostRows] = {};
  for (std::size_t plane = 0; plane < place.plane; ++plane) {
    const PackedLayout::PlanePlace bit = layout.plane_place(plane);
    kept[bit.row] |= ((1u << layout.low_bits()) - 1) << bit.shift;
    if (layout.bits == 3) kept[bit.high_row] |= 1u << bit.high_shift;
  }
  std::uint32_t dwords[MostRows][TileLanes] = {};
  Words built[MostRows][TileVectors];
  for (std::size_t row = 0; row < unit_rows; ++row) {
    if (kept[row] != 0)
      for (std::size_t i = 0; i < span.count; ++i) dwords[row][i] = target[row * TileLanes + i] & kept[row];
    for (std::size_t i = 0; i < TileVectors; ++i) built[row][i] = load_words(dwords[row] + i * Width);
  }
  const Vector levels = set(static_cast<float>((1u << layout.bits) - 1));
  const Words low_mask = words((1u << layout.low_bits()) - 1);
  const bool along_lanes = layout.along == GroupsAlong::lanes;
  float scale[TileLanes], low[TileLanes], buffer[TileLanes];
  for (std::size_t q = p; q < p_end; ++q) {
    const std::size_t step = along_lanes ? (q - p) % TileLanes : 0;
    if (q == p || (along_lanes && step == 0))
      view.get(q, span.lane, along_lanes ? smaller(TileLanes, p_end - q) : span.count, scale, low);
    const float* from =
        source.data + (q - window.p_begin) * source.p_stride + (span.lane - window.lane_begin) * source.lane_stride;
    const float* x = contiguous(from, source.lane_stride, span.count, buffer);
    const PackedLayout::PlanePlace bit = layout.plane_place(place.plane + q - p);
    for (std::size_t i = 0; i < TileVectors; ++i) {
      const Vector scales = along_lanes ? set(scale[step]) : load(scale + i * Width);
      const Vector minima = along_lanes ? set(low[step]) : load(low + i * Width);
      const Words code = quantize(load(x + i * Width), scales, minima, levels);
      built[bit.row][i] = bit_or(built[bit.row][i], shift_left_by(bit_and(code, low_mask), bit.shift));
      if (layout.bits == 3)
        built[bit.high_row][i] = bit_or(built[bit.high_row][i], shift_left_by(shift_right<2>(code), bit.high_shift));
    }
  }
  for (std::size_t row = 0; row < unit_rows; ++row) {
    for (std::size_t i = 0; i < TileVectors; ++i) store_words(dwords[row] + i * Width, built[row][i]);
    for (std::size_t i = 0; i < span.count; ++i) target[row * TileLanes + i] = dwords[row][i];
  }
  return p_end;
}

/// Zeroes the lanes of a tile that belong to no element, once its last real lanes are written.
inline void clear_padding(const PackedLayout& layout, std::uint32_t* codes, const TileSpan& span, std::size_t p_begin,
                          std::size_t p_end) {
  const std::size_t used = span.first + span.count;
  const bool ends_group = layout.along == GroupsAlong::lanes && (span.lane + span.count) % layout.group == 0;
  if (used == TileLanes || !(ends_group || span.lane + span.count == layout.lanes)) return;
  for (std::size_t p = p_begin; p < p_end; ++p) {
    const std::size_t dword = layout.code_place(p, span.lane).dword - span.first;
    for (std::size_t row = 0; row < layout.unit_rows(); ++row)
      for (std::size_t i = used; i < TileLanes; ++i) codes[dword + row * TileLanes + i] = 0;
  }
}

/// Encodes a window of any shape, unit by unit.
inline void encode_units(const MetadataView& view, std::uint32_t* codes, const Window& window,
                         const ConstFloatMatrix& source) {
  encode_metadata(view, window, source);
  const std::size_t lane_end = window.lane_begin + window.lanes, p_end = window.p_begin + window.p_count;
  for (std::size_t lane = window.lane_begin; lane < lane_end;) {
    const TileSpan span = span_at(view.layout, lane, lane_end);
    for (std::size_t p = window.p_begin; p < p_end;) p = encode_unit(view, codes, window, span, p, source);
    clear_padding(view.layout, codes, span, window.p_begin, p_end);
    lane += span.count;
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
