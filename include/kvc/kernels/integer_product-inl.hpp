// Products of group-quantized blocks in integers. Re-included, no guard.
//
//   value = scale (code - centre) + (minimum + centre scale)        centre = (2^bits - 1) / 2
//   groups along lanes:  sum_p y[p] (code[p] - centre)  +  sum_p c[p] (minimum[p] + centre scale[p]),   y ~ c scale
//   groups along p:      sum_g scale[g] (sum_p in g y[p] (code[p] - centre))  +  ...,                   y ~ c
//
// y are integers of 16 bits in one or two bytes. What multiplies the centre is the sum of the *quantized* coefficients, so their
// rounding meets codes whose mean is about zero; the second sum is exact, in floating point.
namespace kvc::kernels {
inline namespace KVC_ABI {
namespace KVC_TARGET {

inline constexpr float Negligible = 1e-30f;  // a scale or coefficient below counts as zero

/// The largest 16-bit value of a quantized coefficient, and what one unit of store_parts()' sum is worth in it.
constexpr float largest_short(PartKind kind) {
  return kind == PartKind::one_unsigned ? 32600.0f : 32500.0f;
}
constexpr float shorts_per_unit(PartKind kind) {
  return kind == PartKind::two ? 1.0f : kind == PartKind::one ? 256.0f : 128.0f;
}

/// The block's parts, what is asked, and how to quantize.
struct IntegerSource {
  const PackedLayout& layout;
  const std::uint32_t* codes;
  const unsigned char *scales, *minima;
  const Window& window;
  const Coefficients& coefficients;
  PartKind kind;
  const IntegerBlocks& blocks;
  std::size_t dword_rows;  // these two of the layout, which divides for them
  unsigned unit_shift;
  /// Where to prefetch next, or null. It moves through the next block from front to back as this one is read, in whatever order:
  /// the prefetching hardware joins in on one run of lines, not on three that take turns.
  mutable const unsigned char* next;

  std::size_t parts() const { return kind == PartKind::two ? 2 : 1; }
  float centre() const { return static_cast<float>((1u << layout.bits) - 1) * 0.5f; }
  /// The centre of what is multiplied.
  float operand_centre() const { return centre() - (layout.bits == 8 ? CodeOffset : 0.0f); }
  /// Scales and minima of `count` groups from number `first` on, padded with zeros to a multiple of 64.
  void read_groups(std::size_t first, std::size_t count, float* scale, float* minimum_of_group) const {
    // Copies, since the compiler must think that a stored vector overwrites members.
    const Scalar type = layout.metadata;
    const unsigned char *from = scales, *minima_from = minima, *line = next;
    const std::size_t step = 2 * Width * scalar_bytes(type);  // bytes read per turn
    for (std::size_t i = 0, bytes = 0; i < count; i += Width) {
      for (bytes += step; line && bytes >= LineBytes; bytes -= LineBytes, line += LineBytes) prefetch(line);
      store(scale + i, load_metadata(from, type, first + i, count - i));
      store(minimum_of_group + i, load_metadata(minima_from, type, first + i, count - i));
    }
    next = line;
    for (std::size_t i = round_up(count, Width); i < round_up(count, 64); i += Width) {
      store(scale + i, zero());
      store(minimum_of_group + i, zero());
    }
  }
  /// Completes a block, whose results are those of the whole row, with the codes and scales of a pair of tiles (or one tile,
  /// taken twice), of which `width` lanes exist, and runs it.
  KVC_ALWAYS_INLINE void run(IntegerBlock block, std::size_t rows, std::size_t tile, std::size_t width,
                             bool prefetches) const {
    block.unit_shift = unit_shift;
    block.metadata = layout.metadata;
    block.metadata_stride = layout.metadata_stride() * scalar_bytes(layout.metadata);
    std::size_t lines = 0;
    for (std::size_t t = 0; t < IntegerTiles; ++t) {
      const std::size_t number = tile + (t * TileLanes < width ? t : 0);
      block.codes[t] = codes + number * dword_rows * TileLanes;
      if (layout.along == GroupsAlong::lanes) continue;
      const std::size_t first = (block.segments[0].metadata_row * layout.metadata_stride() + number * TileLanes) *
                                scalar_bytes(layout.metadata);
      block.scales[t] = scales + first;
      block.minima[t] = minima + first;
      lines += 2 * TileLanes * scalar_bytes(layout.metadata) / LineBytes * block.segment_count;
    }
    if (prefetches && next) {
      block.next = next;
      for (std::size_t segment = 0; segment < block.segment_count; ++segment)
        lines += block.units(segment) * layout.unit_rows() * IntegerTiles;
      next += lines * LineBytes;
    }
    const auto function = blocks.of[static_cast<int>(kind)][rows];
    constexpr std::size_t Lanes = IntegerTiles * TileLanes;
    if (width >= Lanes) return function(block);
    alignas(64) float buffer[IntegerRows * Lanes];
    const Results results = block.results;
    for (std::size_t r = 0; r < rows && results.add; ++r)
      for (std::size_t i = 0; i < width; ++i) buffer[r * Lanes + i] = results.data[r * results.stride + i];
    block.results = {buffer, Lanes, results.add};
    function(block);
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t i = 0; i < width; ++i) results.data[r * results.stride + i] = buffer[r * Lanes + i];
  }
};

inline constexpr std::size_t FoldedGroups = 8;  // groups of lanes whose scales are folded in at a time

/// Rows of the next block out of `left`: as even as can be.
constexpr std::size_t integer_rows(std::size_t left) {
  return left <= IntegerRows ? left : left < 2 * IntegerRows ? (left + 1) / 2 : IntegerRows;
}

inline float largest_magnitude(const float* x, const float* factors, std::size_t count) {
  Vector largest = zero();
  const Words magnitude = words(0x7fffffffu);
  for (std::size_t i = 0; i < count; i += Width)
    largest = maximum(float_of(bit_and(bits_of(multiply(load(x + i), load(factors + i))), magnitude)), largest);
  return max_of(largest);
}

/// Calls quantize.operator()<Parts, Unsigned>() as `kind` says.
template <class Quantize>
KVC_ALWAYS_INLINE void for_kind(PartKind kind, Quantize quantize) {
  if (kind == PartKind::two)
    quantize.template operator()<2, false>();
  else if (kind == PartKind::one)
    quantize.template operator()<1, false>();
  else
    quantize.template operator()<1, true>();
}

/// Groups along lanes: every group folds its scales into the coefficients anew, in 16 bits. `largest` scales of each p over
/// the window's groups make the fixed point: both factors of y = (c largest) (scale / largest) use their whole range.
struct LaneGroupsInteger {
  const IntegerSource& source;
  std::size_t p, count, padded;  // the chunk, relative to the window
  alignas(64) float largest[IntegerChunk], inverse[IntegerChunk];
  alignas(64) float rows_of[PreparedRows][IntegerChunk], unit[PreparedRows];
  alignas(64) std::int16_t quantized[PreparedRows][IntegerChunk];

  LaneGroupsInteger(const IntegerSource& packed, std::size_t chunk_begin, std::size_t chunk_count)
      : source(packed), p(chunk_begin), count(chunk_count), padded(round_up(chunk_count, 64)) {
    const PackedLayout& layout = source.layout;
    const std::size_t stride = layout.metadata_stride(), groups = divide_up(source.window.lanes, layout.group);
    const unsigned char* scales = source.scales;
    const Scalar type = layout.metadata;
    for (std::size_t i = 0; i < padded; i += Width) {
      const std::size_t first = metadata_of(0) + i, valid = i < count ? count - i : 0;
      Vector most = zero();
      const auto most_of = [&](Scalar held, std::size_t lanes) KVC_LAMBDA_INLINE {
        for (std::size_t g = 0; g < groups; ++g)
          most = maximum(load_metadata(scales, held, first + g * stride, lanes), most);
      };
      if (type == Scalar::f16 && valid >= Width)  // what is asked once here is asked for every group there
        most_of(Scalar::f16, Width);
      else
        most_of(type, valid);
      store(largest + i, most);
      store(inverse + i, select_less(set(Negligible), most, divide(set(32767.0f), most), zero()));
    }
  }

  std::size_t metadata_of(std::size_t lane) const {
    return (source.window.lane_begin + lane) / source.layout.group * source.layout.metadata_stride() +
           source.window.p_begin + p;
  }

  /// Quantizes rows [row, row + rows) with their largest scales folded in.
  void prepare(std::size_t row, std::size_t rows) {
    for (std::size_t r = 0; r < rows; ++r) {
      const float* from = source.coefficients.data + (row + r) * source.coefficients.stride + p;
      for (std::size_t i = 0; i < padded; i += Width) {
        const std::size_t valid = i < count ? smaller(Width, count - i) : 0;
        store(rows_of[r] + i, valid == Width ? load(from + i) : load_partial(from + i, valid));
      }
      const float most = largest_magnitude(rows_of[r], largest, padded), limit = largest_short(source.kind);
      const bool any = most > Negligible;
      unit[r] = any ? most / limit * (32768.0f / 32767.0f) : 0.0f;
      const Vector factor = set(any ? limit / most : 0.0f);
      alignas(64) float factors[IntegerChunk];
      for (std::size_t i = 0; i < padded; i += Width) store(factors + i, multiply(load(largest + i), factor));
      for (std::size_t i = 0; i < padded; i += 64)
        to_shorts(source.layout.bits, rows_of[r] + i, factors + i, quantized[r] + i);
    }
  }

  /// Groups of lanes from `lane` on, for all prepared rows, whose results begin at `results`. All groups are folded before
  /// the first one is multiplied: two long runs of independent work keep the processor busier than an alternation.
  void run_groups(std::size_t lane, std::size_t groups, std::size_t rows, const Results& results) const {
    const PackedLayout& layout = source.layout;
    const Segment segment = {p, count, (source.window.p_begin + p) / layout.planes() * layout.unit_rows(), 0, 0};
    const std::size_t group_tiles = layout.tiles_per_group();
    const std::size_t first_tile = (source.window.lane_begin + lane) / layout.group * group_tiles;
    Folded folded;
    for (std::size_t row = 0, block_rows = 0; row < rows; row += block_rows) {
      block_rows = integer_rows(rows - row);
      for (std::size_t r = 0; r < block_rows; ++r) folded.factors[r] = unit[row + r] * shorts_per_unit(source.kind);
      for_kind(source.kind, [&]<unsigned Parts, bool Unsigned>() KVC_LAMBDA_INLINE {
        for (std::size_t g = 0; g < groups; ++g)
          fold<Parts, Unsigned>(lane + g * layout.group, row, block_rows, folded, g);
      });
      for (std::size_t g = 0; g < groups; ++g) {
        const std::size_t first = lane + g * layout.group, width = smaller(layout.group, source.window.lanes - first);
        for (std::size_t t = 0; t < width; t += IntegerTiles * TileLanes)
          source.run({.segments = &segment,
                      .coefficients = folded.parts[g],
                      .unit = folded.factors,
                      .shift = folded.constants[g],
                      .results = {results.data + row * results.stride + first + t, results.stride, results.add}},
                     block_rows, first_tile + g * group_tiles + t / TileLanes, width - t, row == 0);
      }
    }
  }

 private:
  struct Folded {
    alignas(64) std::uint32_t parts[FoldedGroups][IntegerRows * 2 * IntegerDwords];
    float constants[FoldedGroups][IntegerRows], factors[IntegerRows];
  };

  /// Quantizes rows [row, row + rows) with the scales of the group at `lane` folded in.
  template <unsigned Parts, bool Unsigned>
  KVC_ALWAYS_INLINE void fold(std::size_t lane, std::size_t row, std::size_t rows, Folded& folded,
                              std::size_t g) const {
    const float centre = source.centre();
    alignas(64) float scales[IntegerChunk], middle[IntegerChunk];
    alignas(64) std::int16_t fixed[IntegerChunk];
    source.read_groups(metadata_of(lane), count, scales, middle);
    for (std::size_t i = 0; i < padded; i += 64) to_shorts(source.layout.bits, scales + i, inverse + i, fixed + i);
    Vector dots[IntegerRows];
    auto dots_of = [&]<std::size_t Rows>() KVC_LAMBDA_INLINE {
      Vector sum[2][Rows];  // two, or one row alone would wait for its own sum
      KVC_UNROLL
      for (std::size_t i = 0; i < 2 * Rows; ++i) sum[i / Rows][i % Rows] = zero();
      for (std::size_t i = 0; i < padded; i += 2 * Width) {
        KVC_UNROLL
        for (std::size_t c = 0; c < 2; ++c) {
          const std::size_t at = i + c * Width;
          const Vector factor = fma(set(centre), load(scales + at), load(middle + at));
          KVC_UNROLL
          for (std::size_t r = 0; r < Rows; ++r)
            sum[c][r] = fma(load(rows_of[row + smaller(r, rows - 1)] + at), factor, sum[c][r]);
        }
      }
      KVC_UNROLL
      for (std::size_t r = 0; r < IntegerRows; ++r) dots[r] = r < Rows ? add(sum[0][r], sum[1][r]) : zero();
    };
    if (rows == 1)
      dots_of.template operator()<1>();
    else
      dots_of.template operator()<IntegerRows>();
    for (std::size_t r = 0; r < rows; ++r) {
      std::uint32_t* parts = folded.parts[g] + r * Parts * IntegerDwords;
      Words sum = words(0);
      for (std::size_t i = 0; i < padded; i += 64) {
        Shorts x[ShortsOf64];
        KVC_UNROLL
        for (std::size_t k = 0; k < ShortsOf64; ++k)
          x[k] = multiply_rounded(load_shorts(quantized[row + r] + i + k * 2 * Width),
                                  load_shorts(fixed + i + k * 2 * Width));
        sum = store_parts<Parts, Unsigned>(x, parts + i / 4, parts + IntegerDwords + i / 4, sum);
      }
      dots[r] = fma(signed_to_float(sum), set(-source.operand_centre() * folded.factors[r]), dots[r]);
    }
    sums_of(dots, folded.constants[g]);
  }
};

/// Groups along p: the coefficients of each group are quantized once, with a unit of their own.
struct StepGroupsInteger {
  static constexpr std::size_t Run = 16, MaxSegments = IntegerChunk / Run;

  const IntegerSource& source;
  Segment segments[MaxSegments];
  std::size_t segment_count = 0, padded = 0;
  alignas(64) std::uint32_t parts[PreparedRows * 2 * IntegerDwords];
  float unit[MaxSegments][PreparedRows], shift[MaxSegments][PreparedRows], sums[MaxSegments][PreparedRows];

  explicit StepGroupsInteger(const IntegerSource& packed) : source(packed) {}

  /// Cuts the chunk that starts at p into segments, each from a run of 16 on; returns where the next chunk starts.
  std::size_t cut(std::size_t p) {
    const PackedLayout& layout = source.layout;
    std::size_t used = 0;
    segment_count = 0;
    while (used < IntegerChunk && p < source.window.p_count) {
      const std::size_t position = source.window.p_begin + p, in_group = position % layout.group;
      const std::size_t count =
          smaller(smaller(layout.group - in_group, source.window.p_count - p), IntegerChunk - used);
      const std::size_t row =
          position / layout.group * layout.rows_per_group() + in_group / layout.planes() * layout.unit_rows();
      segments[segment_count++] = {p, count, row, used, position / layout.group};
      used += round_up(count, layout.planes() > Run ? layout.planes() : Run);
      p += count;
    }
    padded = round_up(used, 64);
    return p;
  }

  void prepare(std::size_t row, std::size_t rows) {
    const float limit = largest_short(source.kind), step = shorts_per_unit(source.kind);
    const Vector steps = set(step);
    const float centre = source.centre();
    alignas(64) float values[IntegerChunk], ones[IntegerChunk];
    alignas(64) std::int16_t shorts[IntegerChunk];
    for (std::size_t i = 0; i < padded; i += Width) store(ones + i, set(1.0f));
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < padded; i += Width) store(values + i, zero());
      for (std::size_t s = 0; s < segment_count; ++s) {
        const Segment& segment = segments[s];
        const float* from = source.coefficients.data + (row + r) * source.coefficients.stride + segment.p;
        float* to = values + segment.offset;
        Vector sum = zero();
        for (std::size_t i = 0; i < segment.count; i += Width) {
          const std::size_t valid = smaller(Width, segment.count - i);
          const Vector c = valid == Width ? load(from + i) : load_partial(from + i, valid);
          store(to + i, c);
          sum = add(sum, c);
        }
        const std::size_t whole = round_up(segment.count, Width);
        const float most = largest_magnitude(to, ones, whole);
        const bool any = most > Negligible;
        const Vector factor = set(any ? limit / step / most : 0.0f);
        Vector quantized = zero();
        for (std::size_t i = 0; i < whole; i += Width) {
          const Vector rounded = round_even(multiply(load(to + i), factor));
          store(to + i, multiply(rounded, steps));
          quantized = add(quantized, rounded);
        }
        unit[s][r] = any ? most * step / limit : 0.0f;
        sums[s][r] = sum_of(sum);
        shift[s][r] = centre * sums[s][r] - source.operand_centre() * unit[s][r] * sum_of(quantized);
      }
      for (std::size_t i = 0; i < padded; i += 64) to_shorts(source.layout.bits, values + i, ones + i, shorts + i);
      std::uint32_t* high = parts + r * source.parts() * IntegerDwords;
      for_kind(source.kind, [&]<unsigned Parts, bool Unsigned>() KVC_LAMBDA_INLINE {
        for (std::size_t i = 0; i < padded; i += 64) {
          Shorts x[ShortsOf64];
          KVC_UNROLL
          for (std::size_t k = 0; k < ShortsOf64; ++k) x[k] = load_shorts(shorts + i + k * 2 * Width);
          store_parts<Parts, Unsigned>(x, high + i / 4, high + IntegerDwords + i / 4, words(0));
        }
      });
    }
  }

  /// A pair of tiles, or the last one, `tile` of the block being the first, for all prepared rows, whose results begin at
  /// `results`.
  void run_tiles(std::size_t tile, std::size_t width, std::size_t rows, const Results& results) const {
    for (std::size_t row = 0, block_rows = 0; row < rows; row += block_rows) {
      block_rows = integer_rows(rows - row);
      source.run({.segments = segments,
                  .segment_count = segment_count,
                  .coefficients = parts + row * source.parts() * IntegerDwords,
                  .unit = unit[0] + row,
                  .shift = shift[0] + row,
                  .sums = sums[0] + row,
                  .results = {results.data + row * results.stride, results.stride, results.add}},
                 block_rows, tile, width, row == 0);
    }
  }
};

inline bool any_negative(const Coefficients& coefficients, std::size_t count) {
  Vector least = zero();
  for (std::size_t r = 0; r < coefficients.rows; ++r) {
    const float* row = coefficients.data + r * coefficients.stride;
    for (std::size_t i = 0; i < count; i += Width)
      least = minimum(count - i >= Width ? load(row + i) : load_partial(row + i, count - i), least);
  }
  return max_of(subtract(zero(), least)) > 0;
}

/// One part is enough for the weights of 2-bit codes; everything else takes two unless the caller wants speed.
inline PartKind part_kind(const PackedLayout& layout, const Window& window, const Coefficients& coefficients) {
  const bool one = coefficients.arithmetic == Arithmetic::fast || (layout.bits == 2 && coefficients.weights);
  if (!one || layout.bits == 8) return PartKind::two;  // 8 bits of a query are worse than 8-bit codes
  if (coefficients.weights && !any_negative(coefficients, window.p_count)) return PartKind::one_unsigned;
  return coefficients.arithmetic == Arithmetic::fast ? PartKind::one : PartKind::two;
}

inline void integer_product(const PackedLayout& layout, const void* block, const Window& window,
                            const Coefficients& coefficients, const Results& results) {
  const unsigned char* bytes = static_cast<const unsigned char*>(block);
  const PartKind kind = part_kind(layout, window, coefficients);
  const bool whole = window.lanes == layout.lanes && window.p_count == layout.p;
  const IntegerSource source{layout,
                             static_cast<const std::uint32_t*>(block),
                             bytes + layout.scale_offset(),
                             bytes + layout.minimum_offset(),
                             window,
                             coefficients,
                             kind,
                             integer_blocks(layout.bits),
                             layout.dword_rows(),
                             static_cast<unsigned>(__builtin_ctzll(layout.planes())),
                             whole && coefficients.ahead != 0 ? bytes + coefficients.ahead : nullptr};
  auto rows_from = [&](std::size_t row, bool add_to) {
    return Results{results.data + row * results.stride, results.stride, add_to};
  };
  if (layout.along == GroupsAlong::lanes) {
    for (std::size_t p = 0; p < window.p_count; p += IntegerChunk) {
      LaneGroupsInteger kernel(source, p, smaller(IntegerChunk, window.p_count - p));
      for (std::size_t row = 0; row < coefficients.rows; row += PreparedRows) {
        const std::size_t rows = smaller(PreparedRows, coefficients.rows - row);
        kernel.prepare(row, rows);
        for (std::size_t lane = 0; lane < window.lanes; lane += FoldedGroups * layout.group)
          kernel.run_groups(lane, smaller(FoldedGroups, divide_up(window.lanes - lane, layout.group)), rows,
                            rows_from(row, results.add || p > 0));
      }
    }
    return;
  }
  StepGroupsInteger kernel(source);
  const std::size_t tiles = divide_up(window.lanes, TileLanes);
  for (std::size_t p = 0, end = 0; p < window.p_count; p = end) {
    end = kernel.cut(p);
    for (std::size_t row = 0; row < coefficients.rows; row += PreparedRows) {
      const std::size_t rows = smaller(PreparedRows, coefficients.rows - row);
      kernel.prepare(row, rows);
      for (std::size_t tile = 0; tile < tiles; tile += IntegerTiles) {
        Results target = rows_from(row, results.add || p > 0);
        target.data += tile * TileLanes;
        kernel.run_tiles(window.lane_begin / TileLanes + tile, window.lanes - tile * TileLanes, rows, target);
      }
    }
  }
}

}  // namespace KVC_TARGET
}  // namespace KVC_ABI
}  // namespace kvc::kernels
