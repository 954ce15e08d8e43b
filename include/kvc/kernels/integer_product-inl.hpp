// Products of group-quantized blocks in integers. Re-included, no guard.
//
//   value = scale (code - centre) + (minimum + centre scale)        centre = (2^bits - 1) / 2
//   groups along lanes:  sum_p y[p] (code[p] - centre)  +  sum_p c[p] (minimum[p] + centre scale[p]),   y ~ c scale
//   groups along p:      sum_g scale[g] (sum_p in g y[p] (code[p] - centre))  +  ...,                   y ~ c
//
// y are integers of 16 bits in one or two bytes. What multiplies the centre is the sum of the *quantized* coefficients, so their
// rounding meets codes whose mean is about zero; the second sum is exact, in floating point.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline constexpr float Negligible = 1e-30f;  // a scale or coefficient below counts as zero

/// The largest 16-bit value of a quantized coefficient, and what one unit of store_parts()' sum is worth in it.
constexpr float largest_short(PartKind kind) {
  return kind == PartKind::one_unsigned ? 32600.0f : 32500.0f;
}
constexpr float shorts_per_unit(PartKind kind) {
  return kind == PartKind::two ? 1.0f : kind == PartKind::one ? 256.0f : 128.0f;
}

/// Groups of lanes whose scales are folded in before they are multiplied: more would not fit the nearest cache.
inline constexpr std::size_t FoldedGroups = 2;

/// Rows of the next block out of `left`: as even as can be.
constexpr std::size_t integer_rows(std::size_t left, std::size_t most) {
  return left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
}

KVC_ALWAYS_INLINE Vector load_scalars(const float* p) {
  return load(p);
}
KVC_ALWAYS_INLINE Vector load_scalars(const std::uint16_t* p) {
  return load_half(p);
}
KVC_ALWAYS_INLINE Vector magnitude(Vector a) {
  return float_of(bit_and(bits_of(a), words(0x7fffffffu)));
}

/// 64 floats times a factor.
KVC_ALWAYS_INLINE void multiply_64(const float* x, Vector factor, Vector* products) {
  KVC_UNROLL
  for (std::size_t k = 0; k < 64 / Width; ++k) products[k] = multiply(load(x + k * Width), factor);
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

/// The largest product of a coefficient and a scale, relative to their root mean square, for which one part is enough for
/// 2-bit keys. Rounding to 1/127 of the largest errs by e / sqrt(12) in each product, with e = largest / 127, and meets codes
/// whose deviation is about 1.1; the format itself errs by product / sqrt(12). So 4.5 root mean squares err by 4 % of it.
inline constexpr float EvenPeak = 4.5f;

/// Groups along lanes: every group folds its scales into the coefficients anew, in 16 bits. `largest` scales of each p over
/// the window's groups make the fixed point: both factors of y = (c largest) (scale / largest) use their whole range.
struct LaneGroupsInteger {
  const IntegerSource& source;
  std::size_t p, count, padded;  // the chunk, relative to the window
  alignas(64) float largest[IntegerChunk], inverse[IntegerChunk];
  alignas(64) float rows_of[PreparedRows][IntegerChunk], unit[PreparedRows];
  alignas(64) std::int16_t quantized[PreparedRows][IntegerChunk];
  PartKind kinds[PreparedRows];  // of each row by itself: no result depends on the other rows

  LaneGroupsInteger(const IntegerSource& packed, std::size_t chunk_begin, std::size_t chunk_count)
      : source(packed), p(chunk_begin), count(chunk_count), padded(round_up(chunk_count, 64)) {
    find_largest();
    for (std::size_t i = 0; i < padded; i += Width) {
      const Vector most = load(largest + i);
      const Vector factor = multiply(set(32767.0f), approximate_inverse(most));  // its error is as small as rounding's
      store(inverse + i, select_less(set(Negligible), most, factor, zero()));
    }
  }

  std::size_t metadata_of(std::size_t lane) const {
    return (source.window.lane_begin + lane) / source.layout.group * source.layout.metadata_stride() +
           source.window.p_begin + p;
  }

  /// Quantizes rows [row, row + rows) with their largest scales folded in.
  void prepare(std::size_t row, std::size_t rows) {
    const float limit = largest_short(source.kind);
    for (std::size_t r = 0; r < rows; ++r) {
      const float* from = source.coefficients.data + (row + r) * source.coefficients.stride + p;
      alignas(64) float products[IntegerChunk];
      Vector highest = zero(), squares = zero();
      for (std::size_t i = 0; i < padded; i += Width) {
        const std::size_t valid = i < count ? smaller(Width, count - i) : 0;
        const Vector c = valid == Width ? load(from + i) : load_partial(from + i, valid);
        const Vector product = multiply(c, load(largest + i));
        store(rows_of[r] + i, c);
        store(products + i, product);
        highest = maximum(magnitude(product), highest);
        squares = fma(product, product, squares);
      }
      const float most = max_of(highest);
      const bool any = most > Negligible;
      unit[r] = any ? most / limit * (32768.0f / 32767.0f) : 0.0f;
      const bool even = most * most * static_cast<float>(count) <= EvenPeak * EvenPeak * sum_of(squares);
      const bool key = source.layout.bits == 2 && !source.coefficients.weights;
      kinds[r] = source.kind == PartKind::two && key && even ? PartKind::one : source.kind;
      const Vector factor = set(any ? limit / most : 0.0f);
      for (std::size_t i = 0; i < padded; i += 64) {
        Vector x[64 / Width];
        multiply_64(products + i, factor, x);
        Shorts fixed[ShortsOf64];
        to_shorts(source.layout.bits, x, fixed);
        KVC_UNROLL
        for (std::size_t k = 0; k < ShortsOf64; ++k) store_shorts(quantized[r] + i + k * 2 * Width, fixed[k]);
      }
    }
  }

  /// Groups of lanes from `lane` on, for all prepared rows, whose results begin at `results`. All groups are folded before
  /// the first one is multiplied: two long runs of independent work keep the processor busier than an alternation.
  void run_groups(std::size_t lane, std::size_t groups, std::size_t rows, const Results& results) const {
    const PackedLayout& layout = source.layout;
    const Segment segment = {p, count, (source.window.p_begin + p) / layout.planes() * layout.unit_rows(), 0, 0};
    Folded folded;
    for (std::size_t row = 0, block_rows = 0; row < rows; row += block_rows) {
      const PartKind kind = kinds[row];
      std::size_t alike = 1;
      while (row + alike < rows && kinds[row + alike] == kind) ++alike;
      block_rows = integer_rows(alike, source.functions.most_rows);
      for (std::size_t r = 0; r < block_rows; ++r) folded.factors[r] = unit[row + r] * shorts_per_unit(kind);
      for_kind(kind, [&]<unsigned Parts, bool Unsigned>() KVC_LAMBDA_INLINE {
        for (std::size_t begin = 0; begin < block_rows; begin += IntegerRows) {
          const std::size_t some = smaller(IntegerRows, block_rows - begin);
          const auto fold = folding<Parts, Unsigned>(some);
          for (std::size_t g = 0; g < groups; ++g)
            (this->*fold)(
                lane + g * layout.group, row + begin, some,
                {folded.parts[g] + begin * Parts * IntegerDwords, folded.constants[g] + begin, folded.factors + begin});
        }
      });
      IntegerBatch batch(source, kind, block_rows,
                         {.segments = &segment,
                          .segment_count = 1,
                          .unit = folded.factors,
                          .result_stride = results.stride,
                          .add = results.add},
                         row == 0);
      for (std::size_t g = 0; g < groups; ++g) {
        const std::size_t first = lane + g * layout.group, width = smaller(layout.group, source.window.lanes - first);
        const std::size_t tile = (source.window.lane_begin + first) / layout.group * layout.tiles_per_group();
        for (std::size_t t = 0; t < width; t += IntegerTiles * TileLanes)
          batch.add(tile + t / TileLanes, width - t, folded.parts[g], folded.constants[g],
                    results.data + row * results.stride + first + t);
      }
    }
  }

 private:
  struct Folded {
    alignas(64) std::uint32_t parts[FoldedGroups][MaxBlockRows * 2 * IntegerDwords];
    float constants[FoldedGroups][MaxBlockRows], factors[MaxBlockRows];
  };
  struct FoldTarget {
    std::uint32_t* parts;
    float* constants;
    const float* factors;
  };

  /// The largest scale of each p over the window's groups. None is negative, so halves compare as integers do.
  void find_largest() {
    const std::size_t first = metadata_of(0), stride = source.layout.metadata_stride();
    const std::size_t groups = divide_up(source.window.lanes, source.layout.group);
    constexpr std::size_t Run = 2 * Width;
    if (source.layout.metadata == Scalar::f16 && count % Run == 0) {
      const auto* halves = static_cast<const std::int16_t*>(static_cast<const void*>(source.scales)) + first;
      for (std::size_t i = 0; i < count; i += Run) {
        Shorts highest = load_shorts(halves + i);
        for (std::size_t g = 1; g < groups; ++g) highest = max_shorts(load_shorts(halves + g * stride + i), highest);
        alignas(64) std::int16_t found[Run];
        store_shorts(found, highest);
        for (std::size_t half = 0; half < 2; ++half)
          store(largest + i + half * Width,
                load_metadata(static_cast<const unsigned char*>(static_cast<const void*>(found)), Scalar::f16,
                              half * Width, Width));
      }
      for (std::size_t i = count; i < padded; i += Width) store(largest + i, zero());
      return;
    }
    for (std::size_t i = 0; i < padded; i += Width) {
      Vector highest = zero();
      for (std::size_t g = 0; g < groups && i < count; ++g)
        highest =
            maximum(load_metadata(source.scales, source.layout.metadata, first + g * stride + i, count - i), highest);
      store(largest + i, highest);
    }
  }

  using Fold = void (LaneGroupsInteger::*)(std::size_t lane, std::size_t row, std::size_t rows, FoldTarget) const;
  template <unsigned Parts, bool Unsigned>
  Fold folding(std::size_t rows) const {
    if (source.layout.metadata == Scalar::f32) return &LaneGroupsInteger::fold<Parts, Unsigned, IntegerRows, float>;
    constexpr Fold OfRows[] = {nullptr, &LaneGroupsInteger::fold<Parts, Unsigned, 1, std::uint16_t>,
                               &LaneGroupsInteger::fold<Parts, Unsigned, smaller(2, IntegerRows), std::uint16_t>,
                               &LaneGroupsInteger::fold<Parts, Unsigned, smaller(3, IntegerRows), std::uint16_t>,
                               &LaneGroupsInteger::fold<Parts, Unsigned, smaller(4, IntegerRows), std::uint16_t>};
    return OfRows[rows];
  }

  /// Quantizes rows [row, row + rows) with the scales of the group at `lane` folded in, in one pass; rows up to Rows repeat the
  /// last one.
  template <unsigned Parts, bool Unsigned, std::size_t Rows, class Element>
  void fold(std::size_t lane, std::size_t row, std::size_t rows, FoldTarget target) const {
    static_assert(Rows <= IntegerRows);
    const Vector centre = set(source.centre());
    const auto* scales = static_cast<const Element*>(static_cast<const void*>(source.scales)) + metadata_of(lane);
    const auto* minima = static_cast<const Element*>(static_cast<const void*>(source.minima)) + metadata_of(lane);
    Vector dots[IntegerRows];
    Words sums[Rows];
    KVC_UNROLL
    for (std::size_t r = 0; r < IntegerRows; ++r) dots[r] = zero();
    KVC_UNROLL
    for (std::size_t r = 0; r < Rows; ++r) sums[r] = words(0);
    Element rest[2][64];
    for (std::size_t i = 0; i < padded; i += 64) {
      const Element *scale_of = scales + i, *minimum_of = minima + i;
      if (i + 64 > count) {
        for (std::size_t k = 0; k < 64; ++k) {
          rest[0][k] = i + k < count ? scale_of[k] : Element{0};
          rest[1][k] = i + k < count ? minimum_of[k] : Element{0};
        }
        scale_of = rest[0];
        minimum_of = rest[1];
      }
      Vector x[64 / Width];
      KVC_UNROLL
      for (std::size_t k = 0; k < 64; k += Width) {
        if (source.next && k % (LineBytes / (2 * sizeof(Element))) == 0) {
          prefetch(source.next);
          source.next += LineBytes;
        }
        const Vector scale = load_scalars(scale_of + k);
        x[k / Width] = multiply(scale, load(inverse + i + k));
        const Vector factor = fma(centre, scale, load_scalars(minimum_of + k));
        KVC_UNROLL
        for (std::size_t r = 0; r < Rows; ++r)
          dots[r] = fma(load(rows_of[row + smaller(r, rows - 1)] + i + k), factor, dots[r]);
      }
      Shorts fixed[ShortsOf64];
      to_shorts(source.layout.bits, x, fixed);
      KVC_UNROLL
      for (std::size_t r = 0; r < Rows; ++r) {
        Shorts y[ShortsOf64];
        KVC_UNROLL
        for (std::size_t k = 0; k < ShortsOf64; ++k)
          y[k] = multiply_rounded(load_shorts(quantized[row + smaller(r, rows - 1)] + i + k * 2 * Width), fixed[k]);
        std::uint32_t* parts = target.parts + r * Parts * IntegerDwords + i / 4;
        sums[r] = store_parts<Parts, Unsigned>(y, parts, parts + IntegerDwords, sums[r]);
      }
    }
    KVC_UNROLL
    for (std::size_t r = 0; r < Rows; ++r)
      dots[r] =
          fma(signed_to_float(sums[r]), set(-source.operand_centre() * target.factors[smaller(r, rows - 1)]), dots[r]);
    sums_of(dots, target.constants);
  }
};

/// Groups along p: the coefficients of each group are quantized once, with a unit of their own.
struct StepGroupsInteger {
  const IntegerSource& source;
  Segment segments[IntegerSegments];
  std::size_t segment_count = 0, padded = 0;
  alignas(
      64) std::uint32_t parts[(PreparedRows + MaxBlockRows) * 2 * IntegerDwords];  // tiles read beyond a block's rows
  float unit[IntegerSegments][PreparedRows], shift[IntegerSegments][PreparedRows], sums[IntegerSegments][PreparedRows];

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
      used += round_up(count, layout.planes() > SegmentGranule ? layout.planes() : SegmentGranule);
      p += count;
    }
    padded = round_up(used, 64);
    return p;
  }

  void prepare(std::size_t row, std::size_t rows) {
    const float limit = largest_short(source.kind), step = shorts_per_unit(source.kind);
    const float centre = source.centre();
    alignas(64) float values[IntegerChunk];
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < padded; i += Width) store(values + i, zero());
      for (std::size_t s = 0; s < segment_count; ++s) {
        const Segment& segment = segments[s];
        const float* from = source.coefficients.data + (row + r) * source.coefficients.stride + segment.p;
        float* to = values + segment.offset;
        Vector sum = zero(), highest = zero();
        for (std::size_t i = 0; i < segment.count; i += Width) {
          const std::size_t valid = smaller(Width, segment.count - i);
          const Vector c = valid == Width ? load(from + i) : load_partial(from + i, valid);
          store(to + i, c);
          sum = add(sum, c);
          highest = maximum(magnitude(c), highest);
        }
        const float most = max_of(highest);
        const bool any = most > Negligible;
        const Vector factor = set(any ? limit / step / most : 0.0f);
        Vector quantized = zero();
        for (std::size_t i = 0; i < segment.count; i += Width) {
          const Vector rounded = round_even(multiply(load(to + i), factor));
          store(to + i, rounded);
          quantized = add(quantized, rounded);
        }
        unit[s][r] = any ? most * step / limit : 0.0f;
        sums[s][r] = sum_of(sum);
        shift[s][r] = centre * sums[s][r] - source.operand_centre() * unit[s][r] * sum_of(quantized);
      }
      std::uint32_t* high = parts + r * source.parts() * IntegerDwords;
      for_kind(source.kind, [&]<unsigned Parts, bool Unsigned>() KVC_LAMBDA_INLINE {
        for (std::size_t i = 0; i < padded; i += 64) {
          Vector x[64 / Width];
          multiply_64(values + i, set(step), x);
          Shorts fixed[ShortsOf64];
          to_shorts(source.layout.bits, x, fixed);
          store_parts<Parts, Unsigned>(fixed, high + i / 4, high + IntegerDwords + i / 4, words(0));
        }
      });
    }
  }

  /// All tiles of the window for all prepared rows, whose results begin at `results`.
  void run(std::size_t rows, const Results& results) const {
    const std::size_t first = source.window.lane_begin / TileLanes, lanes = source.window.lanes;
    for (std::size_t row = 0, block_rows = 0; row < rows; row += block_rows) {
      block_rows = integer_rows(rows - row, source.functions.most_rows);
      IntegerBatch batch(source, source.kind, block_rows,
                         {.segments = segments,
                          .segment_count = segment_count,
                          .unit = unit[0] + row,
                          .sums = sums[0] + row,
                          .result_stride = results.stride,
                          .add = results.add},
                         row == 0);
      for (std::size_t lane = 0; lane < lanes; lane += IntegerTiles * TileLanes)
        batch.add(first + lane / TileLanes, lanes - lane, parts + row * source.parts() * IntegerDwords, shift[0] + row,
                  results.data + row * results.stride + lane);
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
                            const Coefficients& coefficients, const Results& results,
                            const IntegerFunctions& functions) {
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
                             functions,
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
  for (std::size_t p = 0, end = 0; p < window.p_count; p = end) {
    end = kernel.cut(p);
    for (std::size_t row = 0; row < coefficients.rows; row += PreparedRows) {
      const std::size_t rows = smaller(PreparedRows, coefficients.rows - row);
      kernel.prepare(row, rows);
      kernel.run(rows, rows_from(row, results.add || p > 0));
    }
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
