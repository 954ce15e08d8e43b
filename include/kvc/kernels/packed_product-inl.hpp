// Products of group-quantized blocks, without decoding them to memory. Re-included, no guard.
//
//   sum_p c[p] (code[p] scale + minimum)
//   groups along lanes:  sum_p (c[p] scale[p]) code[p]  +  sum_p c[p] minimum[p]      scales folded into coefficients
//   groups along p:      sum_g scale[g] (sum_p in g c[p] code[p]) + minimum[g] (sum_p in g c[p])
//
// Both walk p in chunks, whose coefficients lie in a buffer padded with zeros to whole dwords of codes.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline constexpr std::size_t ChunkSize = 128;  // coefficients per row and chunk: buffers of a few KiB, L1-resident

/// One block of rows × whole tiles: results (+)= sum over `count` p of coefficients × codes. Each tile has coefficients
/// of its own, [rows][ChunkSize], zero from the chunk's end to the end of its last dword.
struct CodeBlock {
  const std::uint32_t* codes[MaxTiles];
  const float* coefficients[MaxTiles];
  std::size_t count;
  Results results;
};

/// Four codes of 3 bits a dword, one in each byte: p = 16 Half + 4 byte + Step of a unit.
template <std::size_t Half, std::size_t Step>
KVC_ALWAYS_INLINE Words three_bit_codes(Words low, Words high) {
  constexpr std::size_t From = 4 * Half + Step;  // of the high bit in its byte, wanted at bit 2
  const Words low_part = bit_and(shift_right<2 * Step>(low), words(0x03030303u));
  if constexpr (From >= 2)
    return bit_or(low_part, bit_and(shift_right<From - 2>(high), words(0x04040404u)));
  else
    return bit_or(low_part, bit_and(shift_left_by(high, 2 - From), words(0x04040404u)));
}

template <std::size_t Step>
KVC_ALWAYS_INLINE Words three_bit_codes_of_half(std::size_t half, Words low, Words high) {
  return half == 0 ? three_bit_codes<0, Step>(low, high) : three_bit_codes<1, Step>(low, high);
}

template <unsigned Bits, std::size_t Rows, std::size_t Tiles>
void code_block(const CodeBlock& block) {
  constexpr std::size_t Planes = Bits == 3 ? 32 : 32 / Bits, Vectors = Tiles * TileVectors;
  const Results results = block.results;
  const std::uint32_t* codes[Tiles];
  const float* coefficients[Tiles];
  KVC_UNROLL
  for (std::size_t t = 0; t < Tiles; ++t) {
    codes[t] = block.codes[t];
    coefficients[t] = block.coefficients[t];
  }
  Vector sum[Rows][Vectors];
  KVC_UNROLL
  for (std::size_t r = 0; r < Rows; ++r) {
    KVC_UNROLL
    for (std::size_t i = 0; i < Vectors; ++i)
      sum[r][i] = results.add ? load(results.data + r * results.stride + i * Width) : zero();
  }
  auto add_product = [&](std::size_t i, std::size_t p, Vector code) KVC_LAMBDA_INLINE {
    KVC_UNROLL
    for (std::size_t r = 0; r < Rows; ++r)
      sum[r][i] = fma(set(coefficients[i / TileVectors][r * ChunkSize + p]), code, sum[r][i]);
  };
  for (std::size_t p = 0; p < block.count; p += Planes) {
    if constexpr (Bits == 3) {
      for (std::size_t half = 0; half < 2; ++half) {
        KVC_UNROLL
        for (std::size_t i = 0; i < Vectors; ++i) {
          const std::uint32_t* unit = codes[i / TileVectors] + p / Planes * 3 * TileLanes + i % TileVectors * Width;
          const Words low = load_words(unit + half * TileLanes), high = load_words(unit + 2 * TileLanes);
          auto add_bytes = [&]<std::size_t Step>() KVC_LAMBDA_INLINE {
            Words four = three_bit_codes_of_half<Step>(half, low, high);
            KVC_UNROLL
            for (std::size_t byte = 0; byte < 4; ++byte) {
              add_product(i, p + 16 * half + 4 * byte + Step, low_codes<8>(four));
              four = shift_right<8>(four);
            }
          };
          add_bytes.template operator()<0>();
          add_bytes.template operator()<1>();
          add_bytes.template operator()<2>();
          add_bytes.template operator()<3>();
        }
      }
    } else {
      Words dwords[Vectors];
      KVC_UNROLL
      for (std::size_t i = 0; i < Vectors; ++i)
        dwords[i] = load_words(codes[i / TileVectors] + p / Planes * TileLanes + i % TileVectors * Width);
      KVC_UNROLL_SOME
      for (std::size_t plane = 0; plane < Planes; ++plane) {
        KVC_UNROLL
        for (std::size_t i = 0; i < Vectors; ++i) {
          const Vector code = low_codes<Bits>(dwords[i]);
          dwords[i] = shift_right<Bits>(dwords[i]);
          add_product(i, p + plane, code);
        }
      }
    }
  }
  KVC_UNROLL
  for (std::size_t r = 0; r < Rows; ++r) {
    KVC_UNROLL
    for (std::size_t i = 0; i < Vectors; ++i) store(results.data + r * results.stride + i * Width, sum[r][i]);
  }
}

using CodeBlockFunction = void (*)(const CodeBlock&);
template <unsigned Bits>
struct MakeCodeBlock {
  static constexpr std::size_t HeldPerTile = 1;
  template <std::size_t Rows, std::size_t Tiles>
  static constexpr CodeBlockFunction get() {
    return code_block<Bits, Rows, Tiles>;
  }
};
template <unsigned Bits>
inline constexpr auto CodeBlocks = make_block_functions<CodeBlockFunction, MakeCodeBlock<Bits>>();

/// What the kernels of both directions share: the block's parts and the window.
struct PackedSource {
  PackedLayout layout;
  const std::uint32_t* codes;
  const unsigned char *scales, *minima;
  const Window& window;
  const Coefficients& coefficients;
  const BlockFunctions<CodeBlockFunction>& functions;

  PackedSource(const PackedLayout& source_layout, const void* block, const Window& part, const Coefficients& rows)
      : layout(source_layout),
        codes(static_cast<const std::uint32_t*>(block)),
        scales(static_cast<const unsigned char*>(block) + source_layout.scale_offset()),
        minima(static_cast<const unsigned char*>(block) + source_layout.minimum_offset()),
        window(part),
        coefficients(rows),
        functions(source_layout.bits == 2   ? CodeBlocks<2>
                  : source_layout.bits == 3 ? CodeBlocks<3>
                  : source_layout.bits == 4 ? CodeBlocks<4>
                                            : CodeBlocks<8>) {}
};

/// `Width` scales or minima from number `index` on, of which `count` exist; the others are zero.
KVC_ALWAYS_INLINE Vector load_metadata(const unsigned char* metadata, Scalar type, std::size_t index,
                                       std::size_t count) {
  const void* from = metadata + index * scalar_bytes(type);
  if (type == Scalar::f32) {
    const float* floats = static_cast<const float*>(from);
    return count >= Width ? load(floats) : load_partial(floats, count);
  }
  const std::uint16_t* halves = static_cast<const std::uint16_t*>(from);
  if (count >= Width) return load_half(halves);
  std::uint16_t rest[Width] = {};
  for (std::size_t i = 0; i < count; ++i) rest[i] = halves[i];
  return load_half(rest);
}

/// Reads `count` scales or minima from number `index` on, and zeros up to a whole tile.
inline void read_metadata(const unsigned char* metadata, Scalar type, std::size_t index, std::size_t count,
                          float* values) {
  for (std::size_t i = 0; i < round_up(count, TileLanes); i += Width)
    store(values + i, i < count ? load_metadata(metadata, type, index + i, count - i) : zero());
}

struct LaneGroupsKernel {
  static constexpr std::size_t HeldPerTile = 1;
  static constexpr bool PreparesRows = true;

  const PackedSource& source;
  std::size_t p, count;  // the chunk, relative to the window

  // Coefficients of the rows in work, the scales of the latest groups folded in: a ring, one slot per tile of a block.
  std::size_t slot = 0, folded_group = 0;
  bool any_folded = false;
  float scaled[MaxTiles][MaxRows * ChunkSize], constants[MaxTiles][MaxRows];

  LaneGroupsKernel(const PackedSource& packed, std::size_t chunk_begin, std::size_t chunk_count)
      : source(packed), p(chunk_begin), count(chunk_count) {}

  std::size_t first_tile() const {
    return source.window.lane_begin / source.layout.group * source.layout.tiles_per_group();
  }
  static constexpr std::size_t most_tiles() { return MaxTiles; }
  std::size_t tiles() const {
    const PackedLayout& layout = source.layout;
    const std::size_t groups = source.window.lanes / layout.group, rest = source.window.lanes % layout.group;
    return groups * layout.tiles_per_group() + divide_up(rest, TileLanes);
  }
  TileTarget target(std::size_t tile) const {
    const std::size_t per_group = source.layout.tiles_per_group(), group = source.layout.group;
    const std::size_t in_group = tile % per_group * TileLanes, offset = tile / per_group * group + in_group;
    return {offset, smaller(smaller(TileLanes, group - in_group), source.window.lanes - offset)};
  }

  void prepare(std::size_t, std::size_t) { any_folded = false; }

  /// scaled[slot][r][p] = c[r][p] scale[group][p], padded with zeros;
  /// constants[slot][r] = sum over p of c[r][p] minimum[group][p].
  void fold(std::size_t group, std::size_t row, std::size_t rows) {
    float scales[ChunkSize], minima[ChunkSize];
    const std::size_t first = group * source.layout.metadata_stride() + source.window.p_begin + p;
    const std::size_t padded = round_up(count, source.layout.planes());
    read_metadata(source.scales, source.layout.metadata, first, count, scales);
    read_metadata(source.minima, source.layout.metadata, first, count, minima);
    for (std::size_t i = round_up(count, TileLanes); i < padded; ++i) scales[i] = minima[i] = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      const float* from = source.coefficients.data + (row + r) * source.coefficients.stride + p;
      float* to = scaled[slot] + r * ChunkSize;
      Vector dot = zero();
      for (std::size_t i = 0; i < padded; i += Width) {
        const std::size_t valid = i < count ? smaller(Width, count - i) : 0;
        const Vector c = valid == Width ? load(from + i) : load_partial(from + i, valid);
        store(to + i, multiply(c, load(scales + i)));
        dot = fma(c, load(minima + i), dot);
      }
      constants[slot][r] = sum_of(dot);
    }
    folded_group = group;
    any_folded = true;
  }

  void run(std::size_t row, std::size_t rows, std::size_t tile, std::size_t tiles, const Results& results) {
    const PackedLayout& layout = source.layout;
    const std::size_t dword_row = (source.window.p_begin + p) / layout.planes() * layout.unit_rows();
    CodeBlock block{{}, {}, count, {results.data, results.stride, true}};
    for (std::size_t t = 0; t < tiles; ++t) {
      const std::size_t number = first_tile() + tile + t, group = number / layout.tiles_per_group();
      if (!any_folded || group != folded_group) {
        slot = (slot + 1) % MaxTiles;
        fold(group, row, rows);
      }
      block.codes[t] = source.codes + (number * layout.dword_rows() + dword_row) * TileLanes;
      block.coefficients[t] = scaled[slot];
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t i = 0; i < TileLanes; i += Width) {
          float* target = results.data + r * results.stride + t * TileLanes + i;
          store(target, results.add ? add(load(target), set(constants[slot][r])) : set(constants[slot][r]));
        }
      }
    }
    source.functions(rows, tiles)(block);
  }
};

/// A run of p inside one group: whole dwords, except at the group's or the window's end.
struct Segment {
  std::size_t p, count;           // relative to the window
  std::size_t dword_row, offset;  // of its codes; in the coefficient buffer
  std::size_t metadata_row;
};

struct StepGroupsKernel {
  static constexpr std::size_t HeldPerTile = 1;
  static constexpr bool PreparesRows = true;
  static constexpr std::size_t MaxSegments = ChunkSize / 4;  // a segment takes a dword at least, of 8-bit codes 4 p

  const PackedSource& source;
  Segment segments[MaxSegments];
  std::size_t segment_count = 0;
  float coefficients[MaxRows * ChunkSize], sums[MaxRows * MaxSegments];  // of the rows in work

  explicit StepGroupsKernel(const PackedSource& packed) : source(packed) {}

  static constexpr std::size_t most_tiles() { return MaxTiles; }
  std::size_t tiles() const { return divide_up(source.window.lanes, TileLanes); }
  TileTarget target(std::size_t tile) const {
    return {tile * TileLanes, smaller(TileLanes, source.window.lanes - tile * TileLanes)};
  }

  /// Cuts the chunk that starts at p into segments; returns where the next chunk starts.
  std::size_t cut(std::size_t p) {
    const PackedLayout& layout = source.layout;
    segment_count = 0;
    for (std::size_t used = 0; used < ChunkSize && p < source.window.p_count;) {
      const std::size_t position = source.window.p_begin + p, in_group = position % layout.group;
      const std::size_t count = smaller(smaller(layout.group - in_group, source.window.p_count - p), ChunkSize - used);
      const std::size_t row =
          position / layout.group * layout.rows_per_group() + in_group / layout.planes() * layout.unit_rows();
      segments[segment_count++] = {p, count, row, used, position / layout.group};
      used += round_up(count, layout.planes());
      p += count;
    }
    return p;
  }

  /// Copies the coefficients of some rows into padded segments and sums them per segment.
  void prepare(std::size_t row, std::size_t rows) {
    const std::size_t planes = source.layout.planes(), step = smaller(Width, planes);
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t s = 0; s < segment_count; ++s) {
        const Segment& segment = segments[s];
        const float* from = source.coefficients.data + (row + r) * source.coefficients.stride + segment.p;
        float* to = coefficients + r * ChunkSize + segment.offset;
        Vector sum = zero();
        for (std::size_t i = 0; i < round_up(segment.count, planes); i += step) {
          const std::size_t valid = i < segment.count ? smaller(step, segment.count - i) : 0;
          const Vector c = valid == Width ? load(from + i) : load_partial(from + i, valid);
          if (step == Width)
            store(to + i, c);
          else
            store_partial(to + i, c, step);
          sum = add(sum, c);
        }
        sums[r * MaxSegments + s] = sum_of(sum);
      }
    }
  }

  void run(std::size_t, std::size_t rows, std::size_t tile, std::size_t tiles, const Results& results) const {
    const PackedLayout& layout = source.layout;
    const std::size_t number = source.window.lane_begin / TileLanes + tile;
    float products[MaxRows * MaxTiles * TileLanes], scales[MaxTiles * TileLanes], minima[MaxTiles * TileLanes];
    CodeBlock block{{}, {}, 0, {products, tiles * TileLanes, false}};
    for (std::size_t s = 0; s < segment_count; ++s) {
      const Segment& segment = segments[s];
      for (std::size_t t = 0; t < tiles; ++t) {
        block.codes[t] = source.codes + ((number + t) * layout.dword_rows() + segment.dword_row) * TileLanes;
        block.coefficients[t] = coefficients + segment.offset;
      }
      block.count = segment.count;
      source.functions(rows, tiles)(block);
      const std::size_t first = segment.metadata_row * layout.metadata_stride() + number * TileLanes;
      const bool add_to_old = results.add || s > 0;
      read_metadata(source.scales, layout.metadata, first, tiles * TileLanes, scales);
      read_metadata(source.minima, layout.metadata, first, tiles * TileLanes, minima);
      for (std::size_t i = 0; i < tiles * TileLanes; i += Width) {
        const Vector scale = load(scales + i), minimum = load(minima + i);
        for (std::size_t r = 0; r < rows; ++r) {
          float* target = results.data + r * results.stride + i;
          const Vector old = add_to_old ? load(target) : zero();
          const Vector shifted = fma(set(sums[r * MaxSegments + s]), minimum, old);
          store(target, fma(scale, load(products + r * tiles * TileLanes + i), shifted));
        }
      }
    }
  }
};

inline void packed_product(const PackedLayout& layout, const void* block, const Window& window,
                           const Coefficients& coefficients, const Results& results) {
  const PackedSource source(layout, block, window, coefficients);
  if (window.p_count == 0 && !results.add) {  // the sum of nothing
    for (std::size_t r = 0; r < coefficients.rows; ++r)
      for (std::size_t lane = 0; lane < window.lanes; ++lane) results.data[r * results.stride + lane] = 0;
    return;
  }
  Results chunk_results = results;
  if (layout.along == GroupsAlong::lanes) {
    for (std::size_t p = 0; p < window.p_count; p += ChunkSize) {
      LaneGroupsKernel kernel(source, p, smaller(ChunkSize, window.p_count - p));
      run_product(kernel, coefficients.rows, chunk_results);
      chunk_results.add = true;
    }
  } else {
    StepGroupsKernel kernel(source);
    for (std::size_t p = 0; p < window.p_count;) {
      p = kernel.cut(p);
      run_product(kernel, coefficients.rows, chunk_results);
      chunk_results.add = true;
    }
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
