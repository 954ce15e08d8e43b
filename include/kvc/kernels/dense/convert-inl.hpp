// Writing and reading unquantized blocks. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

template <Scalar Type>
KVC_ALWAYS_INLINE void store_as(typename StoredAs<Type>::Element* p, Vector a) {
  if constexpr (Type == Scalar::f32)
    store(p, a);
  else if constexpr (Type == Scalar::f16)
    store_half(p, a);
  else
    store_bfloat(p, a);
}

/// `count` floats that are `stride` apart, side by side: in place, or copied into `buffer` (TileLanes floats).
KVC_ALWAYS_INLINE const float* contiguous(const float* from, std::size_t stride, std::size_t count, float* buffer) {
  if (stride == 1 && count == TileLanes) return from;
  for (std::size_t i = 0; i < count; ++i) buffer[i] = from[i * stride];
  for (std::size_t i = count; i < TileLanes; ++i) buffer[i] = 0;
  return buffer;
}

/// Converts the TileLanes elements of one depth.
template <Scalar Type>
void encode_lanes(const float* from, void* to) {
  auto* elements = static_cast<typename StoredAs<Type>::Element*>(to);
  KVC_UNROLL
  for (std::size_t i = 0; i < TileLanes; i += Width) store_as<Type>(elements + i, load(from + i));
}
template <Scalar Type>
void decode_lanes(const void* from, float* to) {
  const auto* elements = static_cast<const typename StoredAs<Type>::Element*>(from);
  KVC_UNROLL
  for (std::size_t i = 0; i < TileLanes; i += Width) store(to + i, load_as<Type>(elements + i));
}

struct LaneConversions {
  void (*encode)(const float* from, void* to);
  void (*decode)(const void* from, float* to);
};
inline constexpr LaneConversions Conversions[] = {
    // in the order of Scalar
    {encode_lanes<Scalar::f32>, decode_lanes<Scalar::f32>},
    {encode_lanes<Scalar::f16>, decode_lanes<Scalar::f16>},
    {encode_lanes<Scalar::bf16>, decode_lanes<Scalar::bf16>},
};

/// Copies `count` elements of 2 or 4 bytes between places that are `stride` elements apart.
template <class Element>
inline void copy_elements_of(const void* from, std::size_t from_stride, void* to, std::size_t to_stride,
                             std::size_t count) {
  const Element* source = static_cast<const Element*>(from);
  Element* target = static_cast<Element*>(to);
  for (std::size_t i = 0; i < count; ++i) target[i * to_stride] = source[i * from_stride];
}
inline void copy_elements(Scalar type, const void* from, std::size_t from_stride, void* to, std::size_t to_stride,
                          std::size_t count) {
  if (type == Scalar::f32)
    copy_elements_of<float>(from, from_stride, to, to_stride, count);
  else
    copy_elements_of<std::uint16_t>(from, from_stride, to, to_stride, count);
}

/// Room for TileLanes elements of any type.
struct LaneBytes {
  alignas(64) unsigned char bytes[TileLanes * sizeof(float)];
};

/// Converts along the lanes where the source's lanes follow each other, so both sides are contiguous; else whole tiles are
/// turned first, and what is left converts along the depth.
inline void dense_encode(const DenseLayout& layout, void* block, const Area& area, const ConstFloatMatrix& source) {
  const auto encode = Conversions[static_cast<int>(layout.type)].encode;
  const std::size_t size = scalar_bytes(layout.type);
  unsigned char* bytes = static_cast<unsigned char*>(block);
  float buffer[TileLanes];
  LaneBytes lanes;
  if (source.lane_stride == 1) {
    for (std::size_t lane = 0, count = 0; lane < area.lanes; lane += count) {
      const std::size_t begin = area.lane_begin + lane;
      count = smaller(TileLanes - begin % TileLanes, area.lanes - lane);
      for (std::size_t d = 0; d < area.depth_count; ++d) {
        unsigned char* to = bytes + layout.index(area.depth_begin + d, begin) * size;
        const float* from = contiguous(source.data + d * source.depth_stride + lane, 1, count, buffer);
        encode(from, count == TileLanes ? to : lanes.bytes);
        if (count < TileLanes) copy_elements(layout.type, lanes.bytes, 1, to, 1, count);
      }
    }
    return;
  }
  const std::size_t whole_tiles =
      source.depth_stride == 1 && area.lane_begin % TileLanes == 0 ? area.lanes / TileLanes : 0;
  const std::size_t whole_depth = area.depth_count / TileLanes * TileLanes;
  for (std::size_t tile = 0; tile < whole_tiles; ++tile) {
    float turned[TileLanes * TileLanes];
    for (std::size_t d = 0; d < whole_depth; d += TileLanes) {
      transpose_tile(source.data + d + tile * TileLanes * source.lane_stride, source.lane_stride, turned);
      for (std::size_t i = 0; i < TileLanes; ++i)
        encode(turned + i * TileLanes,
               bytes + layout.index(area.depth_begin + d + i, area.lane_begin + tile * TileLanes) * size);
    }
  }
  for (std::size_t lane = 0; lane < area.lanes; ++lane) {
    for (std::size_t d = lane < whole_tiles * TileLanes ? whole_depth : 0; d < area.depth_count; d += TileLanes) {
      const std::size_t count = smaller(TileLanes, area.depth_count - d);
      const float* from = source.data + d * source.depth_stride + lane * source.lane_stride;
      encode(contiguous(from, source.depth_stride, count, buffer), lanes.bytes);
      unsigned char* to = bytes + layout.index(area.depth_begin + d, area.lane_begin + lane) * size;
      copy_elements(layout.type, lanes.bytes, 1, to, layout.depth_stride, count);
    }
  }
}

/// Reads one lane of the area, 16 depths at a time.
inline void decode_lane(const DenseLayout& layout, const unsigned char* bytes, const Area& area, std::size_t lane,
                        float* to) {
  const auto decode = Conversions[static_cast<int>(layout.type)].decode;
  const unsigned char* from =
      bytes + layout.index(area.depth_begin, area.lane_begin + lane) * scalar_bytes(layout.type);
  const std::size_t step = layout.depth_stride * scalar_bytes(layout.type);
  float buffer[TileLanes];
  LaneBytes lanes = {};
  for (std::size_t d = 0; d < area.depth_count; d += TileLanes) {
    const std::size_t count = smaller(TileLanes, area.depth_count - d);
    copy_elements(layout.type, from + d * step, layout.depth_stride, lanes.bytes, 1, count);
    decode(lanes.bytes, count == TileLanes ? to + d : buffer);
    if (count < TileLanes) copy_elements_of<float>(buffer, 1, to + d, 1, count);
  }
}

/// Reads a whole tile of the area into rows along the depth: squares of it are turned.
inline void decode_tile(const DenseLayout& layout, const unsigned char* bytes, const Area& area, std::size_t lane,
                        const FloatMatrix& target) {
  const auto decode = Conversions[static_cast<int>(layout.type)].decode;
  float square[TileLanes * TileLanes], turned[TileLanes * TileLanes];
  for (std::size_t d = 0; d < area.depth_count; d += TileLanes) {
    for (std::size_t i = 0; i < TileLanes; ++i)
      decode(bytes + layout.index(area.depth_begin + d + i, area.lane_begin + lane) * scalar_bytes(layout.type),
             square + i * TileLanes);
    transpose_tile(square, TileLanes, turned);
    for (std::size_t i = 0; i < TileLanes; ++i)
      copy_elements_of<float>(turned + i * TileLanes, 1, target.data + (lane + i) * target.lane_stride + d, 1,
                              TileLanes);
  }
}

inline void dense_decode(const DenseLayout& layout, const void* block, const Area& area,
                         const FloatMatrix& target) {
  const auto decode = Conversions[static_cast<int>(layout.type)].decode;
  const unsigned char* bytes = static_cast<const unsigned char*>(block);
  float buffer[TileLanes];
  LaneBytes lanes = {};
  for (std::size_t lane = 0, count = 0; lane < area.lanes; lane += count) {
    const std::size_t begin = area.lane_begin + lane;
    count = smaller(TileLanes - begin % TileLanes, area.lanes - lane);
    const bool in_place = count == TileLanes && target.lane_stride == 1;
    if (target.depth_stride == 1 && count == TileLanes && area.depth_count % TileLanes == 0) {
      decode_tile(layout, bytes, area, lane, target);
      continue;
    }
    if (target.depth_stride == 1 && count < TileLanes) {  // few keys: each is gathered along the depth
      for (std::size_t i = lane; i < lane + count; ++i)
        decode_lane(layout, bytes, area, i, target.data + i * target.lane_stride);
      continue;
    }
    for (std::size_t d = 0; d < area.depth_count; ++d) {
      const unsigned char* from = bytes + layout.index(area.depth_begin + d, begin) * scalar_bytes(layout.type);
      if (count < TileLanes) copy_elements(layout.type, from, 1, lanes.bytes, 1, count);
      float* to = target.data + d * target.depth_stride + lane * target.lane_stride;
      decode(count < TileLanes ? lanes.bytes : from, in_place ? to : buffer);
      if (!in_place) copy_elements_of<float>(buffer, 1, to, target.lane_stride, count);
    }
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
