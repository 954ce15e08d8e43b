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

/// `count` floats that are `stride` apart, as one run: in place, or copied into `buffer` (TileLanes floats).
KVC_ALWAYS_INLINE const float* contiguous(const float* from, std::size_t stride, std::size_t count, float* buffer) {
  if (stride == 1 && count == TileLanes) return from;
  for (std::size_t i = 0; i < count; ++i) buffer[i] = from[i * stride];
  for (std::size_t i = count; i < TileLanes; ++i) buffer[i] = 0;
  return buffer;
}

/// Converts TileLanes elements.
template <Scalar Type>
void encode_run(const float* from, void* to) {
  auto* elements = static_cast<typename StoredAs<Type>::Element*>(to);
  KVC_UNROLL
  for (std::size_t i = 0; i < TileLanes; i += Width) store_as<Type>(elements + i, load(from + i));
}
template <Scalar Type>
void decode_run(const void* from, float* to) {
  const auto* elements = static_cast<const typename StoredAs<Type>::Element*>(from);
  KVC_UNROLL
  for (std::size_t i = 0; i < TileLanes; i += Width) store(to + i, load_as<Type>(elements + i));
}

struct RunConversions {
  void (*encode)(const float* from, void* to);
  void (*decode)(const void* from, float* to);
};
inline constexpr RunConversions Conversions[] = {
    // in the order of Scalar
    {encode_run<Scalar::f32>, decode_run<Scalar::f32>},
    {encode_run<Scalar::f16>, decode_run<Scalar::f16>},
    {encode_run<Scalar::bf16>, decode_run<Scalar::bf16>},
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
struct Run {
  alignas(64) unsigned char bytes[TileLanes * sizeof(float)];
};

/// Converts along the lanes where the source's lanes follow each other, so both sides are contiguous; else whole tiles are
/// turned first, and what is left converts along p.
inline void dense_encode(const DenseLayout& layout, void* block, const Window& window, const ConstFloatMatrix& source) {
  const auto encode = Conversions[static_cast<int>(layout.type)].encode;
  const std::size_t size = scalar_bytes(layout.type);
  unsigned char* bytes = static_cast<unsigned char*>(block);
  float buffer[TileLanes];
  Run run;
  if (source.lane_stride == 1) {
    for (std::size_t lane = 0, count = 0; lane < window.lanes; lane += count) {
      const std::size_t begin = window.lane_begin + lane;
      count = smaller(TileLanes - begin % TileLanes, window.lanes - lane);
      for (std::size_t p = 0; p < window.p_count; ++p) {
        unsigned char* to = bytes + layout.index(window.p_begin + p, begin) * size;
        const float* from = contiguous(source.data + p * source.p_stride + lane, 1, count, buffer);
        encode(from, count == TileLanes ? to : run.bytes);
        if (count < TileLanes) copy_elements(layout.type, run.bytes, 1, to, 1, count);
      }
    }
    return;
  }
  const std::size_t whole_tiles =
      source.p_stride == 1 && window.lane_begin % TileLanes == 0 ? window.lanes / TileLanes : 0;
  const std::size_t whole_p = window.p_count / TileLanes * TileLanes;
  for (std::size_t tile = 0; tile < whole_tiles; ++tile) {
    float turned[TileLanes * TileLanes];
    for (std::size_t p = 0; p < whole_p; p += TileLanes) {
      transpose_tile(source.data + p + tile * TileLanes * source.lane_stride, source.lane_stride, turned);
      for (std::size_t i = 0; i < TileLanes; ++i)
        encode(turned + i * TileLanes,
               bytes + layout.index(window.p_begin + p + i, window.lane_begin + tile * TileLanes) * size);
    }
  }
  for (std::size_t lane = 0; lane < window.lanes; ++lane) {
    for (std::size_t p = lane < whole_tiles * TileLanes ? whole_p : 0; p < window.p_count; p += TileLanes) {
      const std::size_t count = smaller(TileLanes, window.p_count - p);
      const float* from = source.data + p * source.p_stride + lane * source.lane_stride;
      encode(contiguous(from, source.p_stride, count, buffer), run.bytes);
      unsigned char* to = bytes + layout.index(window.p_begin + p, window.lane_begin + lane) * size;
      copy_elements(layout.type, run.bytes, 1, to, layout.p_stride, count);
    }
  }
}

/// Reads one lane of the window, 16 p at a time.
inline void decode_lane(const DenseLayout& layout, const unsigned char* bytes, const Window& window, std::size_t lane,
                        float* to) {
  const auto decode = Conversions[static_cast<int>(layout.type)].decode;
  const unsigned char* from =
      bytes + layout.index(window.p_begin, window.lane_begin + lane) * scalar_bytes(layout.type);
  const std::size_t step = layout.p_stride * scalar_bytes(layout.type);
  float buffer[TileLanes];
  Run run = {};
  for (std::size_t p = 0; p < window.p_count; p += TileLanes) {
    const std::size_t count = smaller(TileLanes, window.p_count - p);
    copy_elements(layout.type, from + p * step, layout.p_stride, run.bytes, 1, count);
    decode(run.bytes, count == TileLanes ? to + p : buffer);
    if (count < TileLanes) copy_elements_of<float>(buffer, 1, to + p, 1, count);
  }
}

/// Reads a whole tile of the window into rows along p: squares of it are turned.
inline void decode_tile(const DenseLayout& layout, const unsigned char* bytes, const Window& window, std::size_t lane,
                        const FloatMatrix& target) {
  const auto decode = Conversions[static_cast<int>(layout.type)].decode;
  float square[TileLanes * TileLanes], turned[TileLanes * TileLanes];
  for (std::size_t p = 0; p < window.p_count; p += TileLanes) {
    for (std::size_t i = 0; i < TileLanes; ++i)
      decode(bytes + layout.index(window.p_begin + p + i, window.lane_begin + lane) * scalar_bytes(layout.type),
             square + i * TileLanes);
    transpose_tile(square, TileLanes, turned);
    for (std::size_t i = 0; i < TileLanes; ++i)
      copy_elements_of<float>(turned + i * TileLanes, 1, target.data + (lane + i) * target.lane_stride + p, 1,
                              TileLanes);
  }
}

inline void dense_decode(const DenseLayout& layout, const void* block, const Window& window,
                         const FloatMatrix& target) {
  const auto decode = Conversions[static_cast<int>(layout.type)].decode;
  const unsigned char* bytes = static_cast<const unsigned char*>(block);
  float buffer[TileLanes];
  Run run = {};
  for (std::size_t lane = 0, count = 0; lane < window.lanes; lane += count) {
    const std::size_t begin = window.lane_begin + lane;
    count = smaller(TileLanes - begin % TileLanes, window.lanes - lane);
    const bool in_place = count == TileLanes && target.lane_stride == 1;
    if (target.p_stride == 1 && count == TileLanes && window.p_count % TileLanes == 0) {
      decode_tile(layout, bytes, window, lane, target);
      continue;
    }
    if (target.p_stride == 1 && count < TileLanes) {  // few keys: each is gathered along p
      for (std::size_t i = lane; i < lane + count; ++i)
        decode_lane(layout, bytes, window, i, target.data + i * target.lane_stride);
      continue;
    }
    for (std::size_t p = 0; p < window.p_count; ++p) {
      const unsigned char* from = bytes + layout.index(window.p_begin + p, begin) * scalar_bytes(layout.type);
      if (count < TileLanes) copy_elements(layout.type, from, 1, run.bytes, 1, count);
      float* to = target.data + p * target.p_stride + lane * target.lane_stride;
      decode(count < TileLanes ? run.bytes : from, in_place ? to : buffer);
      if (!in_place) copy_elements_of<float>(buffer, 1, to, target.lane_stride, count);
    }
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
