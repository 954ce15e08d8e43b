// Integer products of codes with quantized coefficients in matrix tiles. Re-included, no guard.
//
// A slab is 64 depths (or the 32 that end a stretch) of a pair of tiles of the block. Three streams of work go through the slabs
// together, so that none waits for what the one before it has just stored:
//
//   unpack slab i + 1 | multiply slab i | add up the stretch that ended before it
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline constexpr std::size_t SlabsInFlight = 4;
struct TileBuffers {
  alignas(64) std::uint32_t codes[SlabsInFlight][IntegerTiles][TileDwords * TileLanes];  // a byte each
  alignas(64) std::uint32_t sums[SlabsInFlight][IntegerTiles][2 * MaxBlockRows * TileLanes];
};

inline constexpr std::size_t CoefficientBytes = (2 * MaxBlockRows - 1) * IntegerDwords * 4 + 64;

/// Where a slab begins in every block of a job.
struct Slab {
  std::size_t code_dwords, coefficient;
  bool half, begins_stretch, ends_stretch;
};
struct Slabs {
  Slab of[MaxStretches];
  std::size_t count = 0;
  bool fits = true;  // every stretch is a multiple of 32 depths

  /// `steps` are those of a unit of dwords, whose rows are unit_rows.
  Slabs(const IntegerJob& job, std::size_t steps, std::size_t unit_rows) {
    for (std::size_t s = 0; s < job.stretch_count; ++s) {
      const Stretch& stretch = job.stretches[s];
      const std::size_t dwords = divide_up(stretch.count, 4 * steps) * steps;
      fits = fits && dwords % (TileDwords / 2) == 0;
      for (std::size_t i = 0; i < dwords; i += TileDwords)
        of[count++] = {(stretch.dword_row + i / steps * unit_rows) * TileLanes, stretch.offset / 4 + i,
                       i + TileDwords > dwords, i == 0, i + TileDwords >= dwords};
    }
  }
};

/// Spreads the codes of a slab over bytes.
template <unsigned Bits>
KVC_ALWAYS_INLINE void unpack_slab(const IntegerBlock& block, const Slab& slab, PrefetchQueue& queue,
                                   std::uint32_t (&target)[IntegerTiles][TileDwords * TileLanes]) {
  using Codes = TurnCodes<Bits>;
  constexpr std::size_t Steps = StepsOf<Bits>, UnitRows = Bits == 3 ? 3 : 1;
  const std::size_t units = (slab.half ? TileDwords / 2 : TileDwords) / Steps;
  KVC_UNROLL
  for (std::size_t t = 0; t < IntegerTiles; ++t) {
    const std::uint32_t* from = block.codes[t] + slab.code_dwords;
    std::uint32_t* to = target[t];
    for (std::size_t unit = 0; unit < units; ++unit, from += UnitRows * TileLanes) {
      if (queue.any()) {
        KVC_UNROLL
        for (std::size_t line = 0; line < UnitRows; ++line) {
          queue.fetch();
          prefetch_near(from + line * TileLanes);
        }
      }
      Codes codes;
      codes.begin(from);
      KVC_UNROLL
      for (std::size_t turn = 0; turn < Codes::Turns; ++turn, to += Codes::Steps * TileLanes) {
        if (turn > 0) codes.next_turn();
        auto unpack = [&]<std::size_t Step>()
                          KVC_LAMBDA_INLINE { store_words(to + Step * TileLanes, codes.template bytes<Step>()); };
        for_each_step<Codes::Steps>(unpack);
      }
    }
  }
}

template <int Sums, int Coefficients, int Codes>
KVC_ALWAYS_INLINE void multiply_tiles_of(bool is_unsigned) {
  if (is_unsigned)
    multiply_tiles<Sums, Coefficients, Codes, true>();
  else
    multiply_tiles<Sums, Coefficients, Codes, false>();
}

/// sums (+)= coefficients × codes of one slab; meanwhile() is called between loads and products: four times for a whole slab and
/// twice for half a one.
template <class Meanwhile>
KVC_ALWAYS_INLINE void multiply_slab(const IntegerBlock& block, const Slab& slab, bool is_unsigned,
                                     const std::uint32_t* const (&codes)[IntegerTiles], Meanwhile meanwhile) {
  if (slab.begins_stretch) {
    clear_tile<0>();
    clear_tile<1>();
  }
  const std::uint32_t* coefficients = block.coefficients + slab.coefficient;
  if (slab.half) {
    load_tile<6, IntegerDwords * 4, CoefficientBytes>(coefficients);
    load_tile<7, 64, 512>(codes[0]);
    meanwhile();
    multiply_tiles_of<0, 6, 7>(is_unsigned);
    load_tile<7, 64, 512>(codes[1]);
    meanwhile();
    multiply_tiles_of<1, 6, 7>(is_unsigned);
  } else {
    load_tile<4, IntegerDwords * 4, CoefficientBytes>(coefficients);
    meanwhile();
    load_tile<5, 64, 1024>(codes[0]);
    meanwhile();
    multiply_tiles_of<0, 4, 5>(is_unsigned);
    meanwhile();
    load_tile<5, 64, 1024>(codes[1]);
    meanwhile();
    multiply_tiles_of<1, 4, 5>(is_unsigned);
  }
}

/// Some rows after the other, for jobs that do not fit tiles.
inline void multiply_in_registers(const IntegerJob& job, unsigned bits, PartKind kind) {
  const IntegerFunctions& functions = integer_functions(bits);
  const std::size_t parts = kind == PartKind::two ? 2 : 1;
  IntegerBlock halves[IntegerBatch::MaxBlocks];
  const std::size_t most = functions.most_rows[static_cast<int>(kind)];
  for (std::size_t row = 0; row < job.rows; row += most) {
    for (std::size_t i = 0; i < job.block_count; ++i) {
      halves[i] = job.blocks[i];
      halves[i].coefficients += row * parts * IntegerDwords;
      halves[i].shift += row;
      halves[i].results += row * job.result_stride;
    }
    IntegerJob half = job;
    half.blocks = halves;
    half.rows = smaller(most, job.rows - row);
    half.unit += row;
    if (half.sums) half.sums += row;
    if (row > 0) half.next = nullptr;
    functions.of[static_cast<int>(kind)][half.rows](half);
  }
}

template <unsigned Bits>
void multiply_in_tiles(const IntegerJob& job, PartKind kind) {
  const Slabs slabs(job, StepsOf<Bits>, Bits == 3 ? 3 : 1);
  if (!slabs.fits) return multiply_in_registers(job, Bits, kind);
  const bool is_unsigned = kind == PartKind::one_unsigned;
  TileBuffers buffers;
  PrefetchQueue queue{job.next};
  std::size_t unpacked = 0, multiplied = 0, stored = 0, added = 0, added_block = 0, added_stretch = 0;
  auto unpack = [&](std::size_t block, std::size_t slab) KVC_LAMBDA_INLINE {
    unpack_slab<Bits>(job.blocks[block], slabs.of[slab], queue, buffers.codes[unpacked++ % SlabsInFlight]);
  };
  auto add_next = [&]() KVC_LAMBDA_INLINE {
    for (std::size_t t = 0; t < IntegerTiles; ++t) {
      const std::uint32_t* sums = buffers.sums[added % SlabsInFlight][t];
      if (kind == PartKind::two)
        add_stretch<0, 2>(job, job.blocks[added_block], added_stretch, t, queue, StoredSums<2>{sums});
      else
        add_stretch<0, 1>(job, job.blocks[added_block], added_stretch, t, queue, StoredSums<1>{sums});
    }
    ++added;
    if (++added_stretch < job.stretch_count) return;
    added_stretch = 0;
    ++added_block;
  };
  if constexpr (Bits < 8) unpack(0, 0);
  for (std::size_t block = 0; block < job.block_count; ++block) {
    for (std::size_t slab = 0; slab < slabs.count; ++slab) {
      if constexpr (Bits == 8) {  // the codes are bytes already
        const std::uint32_t* const codes[] = {job.blocks[block].codes[0] + slabs.of[slab].code_dwords,
                                              job.blocks[block].codes[1] + slabs.of[slab].code_dwords};
        multiply_slab(job.blocks[block], slabs.of[slab], is_unsigned, codes, [&]() KVC_LAMBDA_INLINE {
          if (!queue.any()) return;
          KVC_UNROLL
          for (std::size_t line = 0; line < 8; ++line) queue.fetch();
        });
      } else {
        const bool last = slab + 1 == slabs.count;
        if (!last || block + 1 < job.block_count) unpack(last ? block + 1 : block, last ? 0 : slab + 1);
        const auto& unpacked_codes = buffers.codes[multiplied++ % SlabsInFlight];
        const std::uint32_t* const codes[] = {unpacked_codes[0], unpacked_codes[1]};
        multiply_slab(job.blocks[block], slabs.of[slab], is_unsigned, codes, []() KVC_LAMBDA_INLINE {});
      }
      if (!slabs.of[slab].ends_stretch) continue;
      constexpr std::size_t Bytes = 2 * MaxBlockRows * TileLanes * 4;
      store_tile<0, Bytes>(buffers.sums[stored % SlabsInFlight][0]);
      store_tile<1, Bytes>(buffers.sums[stored % SlabsInFlight][1]);
      if (stored++ > added) add_next();
    }
  }
  while (added < stored) add_next();
}

template <unsigned Bits, PartKind Kind>
void multiply_in_tiles_as(const IntegerJob& job) {
  multiply_in_tiles<Bits>(job, Kind);
}

/// Few rows leave most of a matrix tile empty, and unpacking codes to memory then costs as much as multiplying them in
/// registers does (decode_bench, groups of 4 and 8 at avx512vnni and amx).
template <unsigned Bits>
constexpr IntegerFunctions make_tile_functions() {
  IntegerFunctions functions = IntegerFunctionsOf<Bits>;
  constexpr IntegerFunction InTiles[] = {multiply_in_tiles_as<Bits, PartKind::two>, multiply_in_tiles_as<Bits, PartKind::one>,
                                         multiply_in_tiles_as<Bits, PartKind::one_unsigned>};
  for (std::size_t kind = 0; kind < (takes_one_part(Bits) ? 3 : 1); ++kind) {
    for (std::size_t rows = functions.most_rows[kind] + 1; rows <= MaxBlockRows; ++rows)
      functions.of[kind][rows] = InTiles[kind];
    functions.most_rows[kind] = MaxBlockRows;
  }
  return functions;
}
template <unsigned Bits>
inline constexpr IntegerFunctions TileFunctionsOf = make_tile_functions<Bits>();

inline const IntegerFunctions& tile_functions(unsigned bits) {
  return bits == 2   ? TileFunctionsOf<2>
         : bits == 3 ? TileFunctionsOf<3>
         : bits == 4 ? TileFunctionsOf<4>
                     : TileFunctionsOf<8>;
}

/// How many scopes the thread is in, each of which has the tiles' shapes set.
inline thread_local int scopes = 0;

/// Tiles always have room for all rows of a block; what fewer rows leave is computed and not looked at.
inline void enter() {
  if (scopes++ == 0) shape_tiles(2 * MaxBlockRows);
}
inline void leave() {
  if (--scopes == 0) release_tiles();
}

inline void packed_product(const PackedLayout& layout, const void* block, const Area& area,
                           const Coefficients& coefficients, const Results& results) {
  if (coefficients.arithmetic == Arithmetic::exact || area.depth_count == 0)
    return exact_product(layout, block, area, coefficients, results);
  enter();
  integer_product(layout, block, area, coefficients, results, tile_functions(layout.bits));
  leave();
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
