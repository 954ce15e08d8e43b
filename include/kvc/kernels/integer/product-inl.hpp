// Products of group-quantized blocks in integers. Re-included, no guard.
//
//   value = scale (code - centre) + (minimum + centre scale)        centre = (2^bits - 1) / 2
//   groups along lanes:      sum_d y[d] (code[d] - centre)  +  sum_d c[d] (minimum[d] + centre scale[d]),   y ~ c scale
//   groups along the depth:  sum_g scale[g] (sum_d in g y[d] (code[d] - centre))  +  ...,                   y ~ c
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

KVC_ALWAYS_INLINE Vector magnitude(Vector a) {
  return float_of(bit_and(bits_of(a), words(0x7fffffffu)));
}
/// The vector of x that begins at `i`, zero from x + count on.
KVC_ALWAYS_INLINE Vector load_up_to(const float* x, std::size_t i, std::size_t count) {
  return i + Width <= count ? load(x + i) : load_partial(x + i, i < count ? count - i : 0);
}

/// 64 floats times a factor, as integers of 16 bits in the order of the codes' steps.
KVC_ALWAYS_INLINE void quantize_64(unsigned bits, const float* x, Vector factor, Shorts* shorts) {
  Vector products[64 / Width];
  KVC_UNROLL
  for (std::size_t k = 0; k < 64 / Width; ++k) products[k] = multiply(load(x + k * Width), factor);
  to_shorts(bits, products, shorts);
}

/// store_parts() of the kind.
KVC_ALWAYS_INLINE Words store_parts_of(PartKind kind, const Shorts* x, std::uint32_t* high, Words sum) {
  if (kind == PartKind::two) return store_parts<2, false>(x, high, high + IntegerDwords, sum);
  if (kind == PartKind::one) return store_parts<1, false>(x, high, high, sum);
  return store_parts<1, true>(x, high, high, sum);
}

/// The largest product of a coefficient and a scale, relative to their root mean square, for which one part is enough for
/// 2-bit keys. Rounding to 1/127 of the largest errs by e / sqrt(12) in each product, with e = largest / 127, and meets codes
/// whose deviation is about 1.1; the format itself errs by product / sqrt(12). So 4.5 root mean squares err by 4 % of it.
inline constexpr float EvenPeak = 4.5f;

/// Groups along lanes: every group folds its scales into the coefficients anew, in 16 bits. `largest` scales of each depth
/// over the area's groups make the fixed point: both factors of y = (c largest) (scale / largest) use their whole range.
struct LaneGroupsInteger {
  const IntegerSource& source;
  const unsigned char*& next;         // to prefetch, or null
  std::size_t begin, count, padded;  // the chunk's depths, relative to the area
  alignas(64) float largest[IntegerChunk], inverse[IntegerChunk];
  alignas(64) float rows_of[PreparedRows][IntegerChunk], unit[PreparedRows];
  alignas(64) std::int16_t quantized[PreparedRows][IntegerChunk];
  PartKind kinds[PreparedRows];  // of each row by itself: no result depends on the other rows

  LaneGroupsInteger(const IntegerSource& packed, const unsigned char*& prefetched, std::size_t chunk_begin,
                    std::size_t chunk_count)
      : source(packed), next(prefetched), begin(chunk_begin), count(chunk_count), padded(round_up(chunk_count, 64)) {
    find_largest();
    for (std::size_t i = 0; i < padded; i += Width) {
      const Vector most = load(largest + i);
      const Vector factor = multiply(set(32767.0f), approximate_inverse(most));  // its error is as small as rounding's
      store(inverse + i, select_less(set(Negligible), most, factor, zero()));
    }
  }

  /// Number of the first scale of the group at `lane`.
  std::size_t metadata_of(std::size_t lane) const {
    return (source.area.lane_begin + lane) / source.layout.group * source.layout.metadata_stride() +
           source.area.depth_begin + begin;
  }

  /// Quantizes rows [row, row + rows) with their largest scales folded in.
  void prepare(std::size_t row, std::size_t rows) {
    const float limit = largest_short(source.kind);
    for (std::size_t r = 0; r < rows; ++r) {
      const float* from = source.coefficients.data + (row + r) * source.coefficients.stride + begin;
      alignas(64) float products[IntegerChunk];
      Vector highest = zero(), squares = zero();
      for (std::size_t i = 0; i < padded; i += Width) {
        const Vector c = load_up_to(from, i, count), product = multiply(c, load(largest + i));
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
        Shorts fixed[ShortsOf64];
        quantize_64(source.layout.bits, products + i, factor, fixed);
        KVC_UNROLL
        for (std::size_t k = 0; k < ShortsOf64; ++k) store_shorts(quantized[r] + i + k * (64 / ShortsOf64), fixed[k]);
      }
    }
  }

  /// `groups` groups of lanes from `lane` on, for all prepared rows, whose results begin at `results`. All groups are folded
  /// before the first one is multiplied: two long sequences of independent work keep the processor busier than an alternation.
  void multiply_groups(std::size_t lane, std::size_t groups, std::size_t rows, const Results& results) {
    const PackedLayout& layout = source.layout;
    const std::size_t dword_row = (source.area.depth_begin + begin) / layout.planes() * layout.unit_rows();
    const Stretch stretch = {begin, count, dword_row, 0, 0};
    const unsigned char* nothing = nullptr;
    Folded folded;
    for (std::size_t row = 0, block_rows = 0; row < rows; row += block_rows) {
      const PartKind kind = kinds[row];
      std::size_t alike = 1;
      while (row + alike < rows && kinds[row + alike] == kind) ++alike;
      block_rows = integer_rows(alike, source.functions.most_rows[static_cast<int>(kind)]);
      for (std::size_t r = 0; r < block_rows; ++r) folded.factors[r] = unit[row + r] * shorts_per_unit(kind);
      const unsigned char*& prefetched = row == 0 ? next : nothing;
      for (std::size_t g = 0; g < groups; ++g)
        for (std::size_t some = 0; some < block_rows; some += IntegerRows)
          fold_rows(metadata_of(lane + g * layout.group), row + some, smaller(IntegerRows, block_rows - some),
                    {folded.parts[g] + some * (kind == PartKind::two ? 2 : 1) * IntegerDwords,
                     folded.constants[g] + some, folded.factors + some},
                    some == 0 ? prefetched : nothing);
      IntegerBatch batch(source, kind, block_rows,
                         {.stretches = &stretch,
                          .stretch_count = 1,
                          .unit = folded.factors,
                          .result_stride = results.stride,
                          .add = results.add},
                         prefetched);
      for (std::size_t g = 0; g < groups; ++g) {
        const std::size_t first = lane + g * layout.group, width = smaller(layout.group, source.area.lanes - first);
        const std::size_t tile = (source.area.lane_begin + first) / layout.group * layout.tiles_per_group();
        for (std::size_t t = 0; t < width; t += IntegerTiles * TileLanes)
          batch.add(tile + t / TileLanes, width - t, folded.parts[g], folded.constants[g],
                    results.data + row * results.stride + first + t);
      }
      batch.finish();
    }
  }

 private:
  /// The rows of a block with the scales of some groups folded in.
  struct Folded {
    alignas(64) std::uint32_t parts[FoldedGroups][MaxBlockRows * 2 * IntegerDwords];
    float constants[FoldedGroups][MaxBlockRows], factors[MaxBlockRows];
  };

  /// The largest scale of each depth over the area's groups. None is negative, so halves compare as integers do.
  void find_largest() {
    const std::size_t first = metadata_of(0), stride = source.layout.metadata_stride();
    const std::size_t groups = divide_up(source.area.lanes, source.layout.group);
    constexpr std::size_t Together = 2 * Width;
    if (source.layout.metadata == Scalar::f16 && count % Together == 0) {
      const auto* halves = static_cast<const std::int16_t*>(static_cast<const void*>(source.scales)) + first;
      for (std::size_t i = 0; i < count; i += Together) {
        Shorts highest = load_shorts(halves + i);
        for (std::size_t g = 1; g < groups; ++g) highest = max_shorts(load_shorts(halves + g * stride + i), highest);
        alignas(64) std::int16_t found[Together];
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

  /// 64 scales and minima from number `index` on, of which `left` exist, and zeros.
  void read_64(std::size_t index, std::size_t left, float* scale, float* low) const {
    for (std::size_t k = 0; k < 64; k += Width) {
      const std::size_t some = k < left ? left - k : 0;
      store(scale + k, load_metadata(source.scales, source.layout.metadata, index + k, some));
      store(low + k, load_metadata(source.minima, source.layout.metadata, index + k, some));
    }
  }

  /// Where a group's scales go that are folded into some rows.
  struct FoldTarget {
    std::uint32_t* parts;
    float* constants;
    const float* factors;
  };

  /// Quantizes `rows` rows from `row` on with the scales of one group, whose first one is number `first`, folded in. Rows up to
  /// Rows repeat the last one.
  template <std::size_t Rows>
  void fold(std::size_t first, std::size_t row, std::size_t rows, const FoldTarget& target,
            const unsigned char*& prefetched) {
    const PackedLayout& layout = source.layout;
    const PartKind kind = kinds[row];
    const std::size_t row_dwords = (kind == PartKind::two ? 2 : 1) * IntegerDwords;
    const std::size_t per_line = LineBytes / (2 * scalar_bytes(layout.metadata));
    const Vector centre = set(source.centre());
    Vector dots[IntegerRows];
    Words sums[IntegerRows];
    KVC_UNROLL
    for (std::size_t r = 0; r < IntegerRows; ++r) {
      dots[r] = zero();
      sums[r] = words(0);
    }
    for (std::size_t i = 0; i < padded; i += 64) {
      alignas(64) float rest[2][64];  // what cannot be read as 64 halves
      const bool plain = layout.metadata == Scalar::f16 && i + 64 <= count;
      if (!plain) read_64(first + i, i < count ? count - i : 0, rest[0], rest[1]);
      const auto* scales = static_cast<const std::uint16_t*>(static_cast<const void*>(source.scales)) + first + i;
      const auto* minima = static_cast<const std::uint16_t*>(static_cast<const void*>(source.minima)) + first + i;
      Vector x[64 / Width];
      KVC_UNROLL
      for (std::size_t k = 0; k < 64; k += Width) {
        if (prefetched && k % per_line == 0) {
          prefetch(prefetched);
          prefetched += LineBytes;
        }
        const Vector scale = plain ? load_half(scales + k) : load(rest[0] + k);
        const Vector low = plain ? load_half(minima + k) : load(rest[1] + k);
        x[k / Width] = multiply(scale, load(inverse + i + k));
        const Vector factor = fma(centre, scale, low);
        KVC_UNROLL
        for (std::size_t r = 0; r < Rows; ++r)
          dots[r] = fma(load(rows_of[row + smaller(r, rows - 1)] + i + k), factor, dots[r]);
      }
      Shorts fixed[ShortsOf64];
      to_shorts(layout.bits, x, fixed);
      for (std::size_t r = 0; r < rows; ++r) {
        Shorts y[ShortsOf64];
        KVC_UNROLL
        for (std::size_t k = 0; k < ShortsOf64; ++k)
          y[k] = multiply_rounded(load_shorts(quantized[row + r] + i + k * (64 / ShortsOf64)), fixed[k]);
        sums[r] = store_parts_of(kind, y, target.parts + r * row_dwords + i / 4, sums[r]);
      }
    }
    KVC_UNROLL
    for (std::size_t r = 0; r < Rows; ++r)
      dots[r] = fma(signed_to_float(sums[r]), set(-source.operand_centre() * target.factors[smaller(r, rows - 1)]),
                    dots[r]);
    sums_of(dots, target.constants);
  }
  void fold_rows(std::size_t first, std::size_t row, std::size_t rows, const FoldTarget& target,
                 const unsigned char*& prefetched) {
    if (rows == 1) return fold<1>(first, row, rows, target, prefetched);
    if (rows == 2) return fold<smaller(2, IntegerRows)>(first, row, rows, target, prefetched);
    if (rows == 3) return fold<smaller(3, IntegerRows)>(first, row, rows, target, prefetched);
    fold<IntegerRows>(first, row, rows, target, prefetched);
  }
};

/// Groups along the depth: the coefficients of each group are quantized once, with a unit of their own.
struct DepthGroupsInteger {
  const IntegerSource& source;
  const unsigned char*& next;  // to prefetch, or null
  Stretch stretches[MaxStretches];
  std::size_t stretch_count = 0, padded = 0;
  // Matrix tiles read beyond a block's rows.
  alignas(64) std::uint32_t parts[(PreparedRows + MaxBlockRows) * 2 * IntegerDwords];
  float unit[MaxStretches][PreparedRows], shift[MaxStretches][PreparedRows], sums[MaxStretches][PreparedRows];

  DepthGroupsInteger(const IntegerSource& packed, const unsigned char*& prefetched)
      : source(packed), next(prefetched) {}

  /// Cuts the chunk that starts at depth d into stretches; returns where the next chunk starts.
  std::size_t cut(std::size_t d) {
    const PackedLayout& layout = source.layout;
    std::size_t used = 0;
    stretch_count = 0;
    while (used < IntegerChunk && d < source.area.depth_count) {
      const std::size_t position = source.area.depth_begin + d, in_group = position % layout.group;
      const std::size_t count =
          smaller(smaller(layout.group - in_group, source.area.depth_count - d), IntegerChunk - used);
      const std::size_t row =
          position / layout.group * layout.rows_per_group() + in_group / layout.planes() * layout.unit_rows();
      stretches[stretch_count++] = {d, count, row, used, position / layout.group};
      used += round_up(count, layout.planes() > StretchGranule ? layout.planes() : StretchGranule);
      d += count;
    }
    padded = round_up(used, 64);
    return d;
  }

  void prepare(std::size_t row, std::size_t rows) {
    const float limit = largest_short(source.kind), per_unit = shorts_per_unit(source.kind);
    const float centre = source.centre();
    alignas(64) float values[IntegerChunk];
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < padded; i += Width) store(values + i, zero());
      for (std::size_t s = 0; s < stretch_count; ++s) {
        const Stretch& stretch = stretches[s];
        const float* from = source.coefficients.data + (row + r) * source.coefficients.stride + stretch.depth;
        float* to = values + stretch.offset;
        Vector sum = zero(), highest = zero();
        for (std::size_t i = 0; i < stretch.count; i += Width) {
          const Vector c = load_up_to(from, i, stretch.count);
          store(to + i, c);
          sum = add(sum, c);
          highest = maximum(magnitude(c), highest);
        }
        const float most = max_of(highest);
        const bool any = most > Negligible;
        const Vector factor = set(any ? limit / per_unit / most : 0.0f);
        Vector quantized = zero();
        for (std::size_t i = 0; i < stretch.count; i += Width) {
          const Vector rounded = round_even(multiply(load(to + i), factor));
          store(to + i, rounded);
          quantized = add(quantized, rounded);
        }
        unit[s][r] = any ? most * per_unit / limit : 0.0f;
        sums[s][r] = sum_of(sum);
        shift[s][r] = centre * sums[s][r] - source.operand_centre() * unit[s][r] * sum_of(quantized);
      }
      std::uint32_t* high = parts + r * source.parts() * IntegerDwords;
      for (std::size_t i = 0; i < padded; i += 64) {
        Shorts fixed[ShortsOf64];
        quantize_64(source.layout.bits, values + i, set(per_unit), fixed);
        store_parts_of(source.kind, fixed, high + i / 4, words(0));
      }
    }
  }

  /// All tiles of the area for all prepared rows, whose results begin at `results`.
  void multiply_all(std::size_t rows, const Results& results) {
    const std::size_t first = source.area.lane_begin / TileLanes, lanes = source.area.lanes;
    const unsigned char* nothing = nullptr;
    for (std::size_t row = 0, block_rows = 0; row < rows; row += block_rows) {
      block_rows = integer_rows(rows - row, source.functions.most_rows[static_cast<int>(source.kind)]);
      IntegerBatch batch(source, source.kind, block_rows,
                         {.stretches = stretches,
                          .stretch_count = stretch_count,
                          .unit = unit[0] + row,
                          .sums = sums[0] + row,
                          .result_stride = results.stride,
                          .add = results.add},
                         row == 0 ? next : nothing);
      for (std::size_t lane = 0; lane < lanes; lane += IntegerTiles * TileLanes)
        batch.add(first + lane / TileLanes, lanes - lane, parts + row * source.parts() * IntegerDwords, shift[0] + row,
                  results.data + row * results.stride + lane);
      batch.finish();
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

/// One part is enough for the weights of 2-bit codes; everything else takes two unless the caller wants speed. Codes of 3 bits take
/// two in any case: they are too seldom used for functions of their own.
inline PartKind part_kind(const PackedLayout& layout, const Area& area, const Coefficients& coefficients) {
  const bool one = coefficients.arithmetic == Arithmetic::fast || (layout.bits == 2 && coefficients.weights);
  if (!one || !takes_one_part(layout.bits)) return PartKind::two;
  if (coefficients.weights && !any_negative(coefficients, area.depth_count)) return PartKind::one_unsigned;
  return coefficients.arithmetic == Arithmetic::fast ? PartKind::one : PartKind::two;
}

inline void integer_product(const PackedLayout& layout, const void* block, const Area& area,
                            const Coefficients& coefficients, const Results& results,
                            const IntegerFunctions& functions) {
  const unsigned char* bytes = static_cast<const unsigned char*>(block);
  const bool whole = area.lanes == layout.lanes && area.depth_count == layout.depth;
  const unsigned char* next = whole && coefficients.ahead != 0 ? bytes + coefficients.ahead : nullptr;
  const IntegerSource source{layout,
                             static_cast<const std::uint32_t*>(block),
                             bytes + layout.scale_offset(),
                             bytes + layout.minimum_offset(),
                             area,
                             coefficients,
                             part_kind(layout, area, coefficients),
                             functions};
  const auto rows_from = [&](std::size_t row, bool add_to) {
    return Results{results.data + row * results.stride, results.stride, add_to};
  };
  if (layout.along == GroupsAlong::lanes) {
    for (std::size_t d = 0; d < area.depth_count; d += IntegerChunk) {
      LaneGroupsInteger kernel(source, next, d, smaller(IntegerChunk, area.depth_count - d));
      for (std::size_t row = 0; row < coefficients.rows; row += PreparedRows) {
        const std::size_t rows = smaller(PreparedRows, coefficients.rows - row);
        kernel.prepare(row, rows);
        for (std::size_t lane = 0; lane < area.lanes; lane += FoldedGroups * layout.group)
          kernel.multiply_groups(lane, smaller(FoldedGroups, divide_up(area.lanes - lane, layout.group)), rows,
                                 rows_from(row, results.add || d > 0));
      }
    }
    return;
  }
  DepthGroupsInteger kernel(source, next);
  for (std::size_t d = 0, end = 0; d < area.depth_count; d = end) {
    end = kernel.cut(d);
    for (std::size_t row = 0; row < coefficients.rows; row += PreparedRows) {
      const std::size_t rows = smaller(PreparedRows, coefficients.rows - row);
      kernel.prepare(row, rows);
      kernel.multiply_all(rows, rows_from(row, results.add || d > 0));
    }
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
