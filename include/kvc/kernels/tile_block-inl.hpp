// Integer products of codes with quantized coefficients in matrix tiles. Re-included, no guard.
//
// A step takes 64 p (or the 32 that end a segment) of a pair of tiles. Three runs of work go through the steps together, so
// that none waits for what the one before it has just stored:
//
//   unpack step i + 1 | multiply step i | add up the segment that ended before it
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline constexpr std::size_t StepsInFlight = 4;
struct TileBuffers {
  alignas(64) std::uint32_t codes[StepsInFlight][IntegerTiles][TileDwords * TileLanes];  // a byte each
  alignas(64) std::uint32_t sums[StepsInFlight][IntegerTiles][2 * MaxBlockRows * TileLanes];
};

inline constexpr std::size_t CoefficientBytes = (2 * MaxBlockRows - 1) * IntegerDwords * 4 + 64;

/// Where a step begins in every block of a run.
struct TileStep {
  std::size_t code_dwords, coefficient;
  bool half, begins_segment, ends_segment;
};
template <unsigned Bits>
struct TileSteps {
  TileStep of[IntegerSegments];
  std::size_t count = 0;
  bool fits = true;  // every segment is a multiple of 32 p

  explicit TileSteps(const IntegerRun& run) {
    constexpr std::size_t UnitRows = Bits == 3 ? 3 : 1;
    for (std::size_t s = 0; s < run.segment_count; ++s) {
      const Segment& segment = run.segments[s];
      const std::size_t dwords = units_of<Bits>(segment) * StepsOf<Bits>;
      fits = fits && dwords % (TileDwords / 2) == 0;
      for (std::size_t i = 0; i < dwords; i += TileDwords)
        of[count++] = {(segment.dword_row + i / StepsOf<Bits> * UnitRows) * TileLanes, segment.offset / 4 + i,
                       i + TileDwords > dwords, i == 0, i + TileDwords >= dwords};
    }
  }
};

template <unsigned Bits, std::size_t Dwords>
KVC_ALWAYS_INLINE void unpack_step(const IntegerBlock& block, const TileStep& step, const unsigned char*& next,
                                   std::uint32_t (&target)[IntegerTiles][TileDwords * TileLanes]) {
  constexpr std::size_t Steps = StepsOf<Bits>, UnitRows = Bits == 3 ? 3 : 1;
  KVC_UNROLL
  for (std::size_t t = 0; t < IntegerTiles; ++t) {
    const std::uint32_t* codes = block.codes[t] + step.code_dwords;
    KVC_UNROLL
    for (std::size_t unit = 0; unit < Dwords / Steps; ++unit) {
      const std::uint32_t* from = codes + unit * UnitRows * TileLanes;
      std::uint32_t* to = target[t] + unit * Steps * TileLanes;
      if (next) {
        KVC_UNROLL
        for (std::size_t line = 0; line < UnitRows; ++line) {
          prefetch(next + line * LineBytes);
          prefetch_near(from + line * TileLanes);
        }
        next += UnitRows * LineBytes;
      }
      auto unpack = [&]<std::size_t Step>()
                        KVC_LAMBDA_INLINE { store_words(to + Step * TileLanes, codes_of_step<Bits, Step>(from)); };
      for_each_step<Steps>(unpack);
    }
  }
}

/// sums (+)= coefficients × codes of one step; meanwhile() is called between the loads and products, four times a whole step and
/// twice half a one.
template <bool Unsigned, class Meanwhile>
KVC_ALWAYS_INLINE void multiply_step(const IntegerBlock& block, const TileStep& step,
                                     const std::uint32_t* const (&codes)[IntegerTiles], Meanwhile meanwhile) {
  if (step.begins_segment) {
    clear_tile<0>();
    clear_tile<1>();
  }
  const std::uint32_t* coefficients = block.coefficients + step.coefficient;
  if (step.half) {
    load_tile<6, IntegerDwords * 4, CoefficientBytes>(coefficients);
    load_tile<7, 64, 512>(codes[0]);
    meanwhile();
    multiply_tiles<0, 6, 7, Unsigned>();
    load_tile<7, 64, 512>(codes[1]);
    meanwhile();
    multiply_tiles<1, 6, 7, Unsigned>();
  } else {
    load_tile<4, IntegerDwords * 4, CoefficientBytes>(coefficients);
    meanwhile();
    load_tile<5, 64, 1024>(codes[0]);
    meanwhile();
    multiply_tiles<0, 4, 5, Unsigned>();
    meanwhile();
    load_tile<5, 64, 1024>(codes[1]);
    meanwhile();
    multiply_tiles<1, 4, 5, Unsigned>();
  }
}

/// The rows in two halves, for runs that do not fit tiles.
template <unsigned Bits, unsigned Parts, bool Unsigned>
void run_in_registers(const IntegerRun& run) {
  IntegerBlock halves[IntegerBatch::MaxBlocks];
  for (std::size_t row = 0; row < run.rows; row += IntegerRows) {
    for (std::size_t i = 0; i < run.block_count; ++i) {
      halves[i] = run.blocks[i];
      halves[i].coefficients += row * Parts * IntegerDwords;
      halves[i].shift += row;
      halves[i].results += row * run.result_stride;
    }
    IntegerRun half = run;
    half.blocks = halves;
    half.rows = smaller(IntegerRows, run.rows - row);
    half.unit += row;
    if (half.sums) half.sums += row;
    if (row > 0) half.next = nullptr;
    functions_of_width<InRegisters>(Bits).of[Parts == 2 ? 0 : Unsigned ? 2 : 1][half.rows](half);
  }
}

template <unsigned Bits, unsigned Parts, bool Unsigned>
void tile_run(const IntegerRun& run) {
  const TileSteps<Bits> steps(run);
  if (!steps.fits) return run_in_registers<Bits, Parts, Unsigned>(run);
  TileBuffers buffers;
  const unsigned char* next = run.next;
  std::size_t unpacked = 0, multiplied = 0, stored = 0, added = 0;
  auto unpack = [&](std::size_t block, std::size_t step) KVC_LAMBDA_INLINE {
    auto& target = buffers.codes[unpacked++ % StepsInFlight];
    if (steps.of[step].half)
      unpack_step<Bits, TileDwords / 2>(run.blocks[block], steps.of[step], next, target);
    else
      unpack_step<Bits, TileDwords>(run.blocks[block], steps.of[step], next, target);
  };
  std::size_t added_block = 0, added_segment = 0;
  auto add_next = [&]() KVC_LAMBDA_INLINE {
    for (std::size_t t = 0; t < IntegerTiles; ++t)
      add_segment<0, Parts>(run, run.blocks[added_block], added_segment, t, next,
                            StoredSums<Parts>{buffers.sums[added % StepsInFlight][t]});
    ++added;
    if (++added_segment < run.segment_count) return;
    added_segment = 0;
    ++added_block;
  };
  if constexpr (Bits < 8) unpack(0, 0);
  for (std::size_t block = 0; block < run.block_count; ++block) {
    for (std::size_t step = 0; step < steps.count; ++step) {
      if constexpr (Bits < 8) {
        if (step + 1 < steps.count)
          unpack(block, step + 1);
        else if (block + 1 < run.block_count)
          unpack(block + 1, 0);
      }
      if constexpr (Bits == 8) {
        const std::uint32_t* const codes[] = {run.blocks[block].codes[0] + steps.of[step].code_dwords,
                                              run.blocks[block].codes[1] + steps.of[step].code_dwords};
        multiply_step<Unsigned>(run.blocks[block], steps.of[step], codes, [&]() KVC_LAMBDA_INLINE {
          if (!next) return;
          KVC_UNROLL
          for (std::size_t line = 0; line < 8; ++line) prefetch(next + line * LineBytes);
          next += 8 * LineBytes;
        });
      } else {
        const auto& unpacked_codes = buffers.codes[multiplied++ % StepsInFlight];
        const std::uint32_t* const codes[] = {unpacked_codes[0], unpacked_codes[1]};
        multiply_step<Unsigned>(run.blocks[block], steps.of[step], codes, []() KVC_LAMBDA_INLINE {});
      }
      if (!steps.of[step].ends_segment) continue;
      constexpr std::size_t Bytes = 2 * MaxBlockRows * TileLanes * 4;
      store_tile<0, Bytes>(buffers.sums[stored % StepsInFlight][0]);
      store_tile<1, Bytes>(buffers.sums[stored % StepsInFlight][1]);
      if (stored++ > added) add_next();
    }
  }
  while (added < stored) add_next();
}

/// Few rows leave most of a tile empty, and unpacking codes to memory then costs as much as multiplying them in registers does
/// (decode_bench, groups of 4 and 8 at avx512vnni and amx).
template <unsigned Bits>
struct InTiles {
  static constexpr std::size_t MostRows = MaxBlockRows;
  template <std::size_t Rows, unsigned Parts, bool Unsigned>
  static constexpr IntegerFunction get() {
    if constexpr (Rows <= IntegerRows)
      return integer_run<Bits, Rows, Parts, Unsigned>;
    else
      return tile_run<Bits, Parts, Unsigned>;
  }
};

/// How deep in passes the thread is, each of which has the tiles' shapes set.
inline thread_local int passes = 0;

/// Tiles always have room for all rows of a block; what fewer rows leave is computed and not looked at.
inline void begin_pass() {
  if (passes++ == 0) shape_tiles(2 * MaxBlockRows);
}
inline void end_pass() {
  if (--passes == 0) release_tiles();
}

inline void packed_product_in_tiles(const PackedLayout& layout, const void* block, const Window& window,
                                    const Coefficients& coefficients, const Results& results) {
  if (coefficients.arithmetic == Arithmetic::exact || window.p_count == 0)
    return packed_product(layout, block, window, coefficients, results);
  begin_pass();
  integer_product(layout, block, window, coefficients, results, functions_of_width<InTiles>(layout.bits));
  end_pass();
}

constexpr Table with_passes(Table table) {
  table.begin_pass = begin_pass;
  table.end_pass = end_pass;
  return table;
}

inline constexpr Table KernelTable =
    with_passes(with_integer_products(KernelTableBelow, "amx", packed_product_in_tiles));

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
