// Integer products of codes with quantized coefficients: rows × tiles in the registers. Re-included, no guard.
//
// A dword of coefficients holds four p, in the order in which shifting and masking a dword of codes leaves them:
//
//   8 bits  step 0: p 0..3                      one dword of codes is one step
//   4 bits  step k: p k, 2 + k, 4 + k, 6 + k    two steps, shifted by 4 k
//   2 bits  step k: p k, 4 + k, 8 + k, 12 + k   four steps, shifted by 2 k
//   3 bits  the same of either half of a unit, eight steps; the high bits come from the unit's third row
//
// One dword of them is one part. Where coefficients of 16 bits are multiplied whole (MultipliesShorts), the first "part"
// holds those of the step's bytes 0 and 2, the second those of its bytes 1 and 3.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline constexpr std::size_t IntegerChunk = 256;                // coefficients of a row that are quantized together
inline constexpr std::size_t IntegerDwords = IntegerChunk / 4;  // of one part of them
inline constexpr std::size_t SegmentGranule = 16;  // segments begin at multiples of it among the coefficients
inline constexpr std::size_t IntegerSegments = IntegerChunk / SegmentGranule;
inline constexpr std::size_t MaxBlockRows = 8;   // of any target
inline constexpr std::size_t PreparedRows = 16;  // rows whose quantized coefficients are kept at a time

/// A pair of tiles of a run.
struct IntegerBlock {
  const std::uint32_t* codes[IntegerTiles];  // of the tiles, which segments take rows of
  const std::uint32_t* coefficients;         // [row][part][IntegerDwords]
  const float* shift;                        // [segment][PreparedRows]
  const unsigned char *scales[IntegerTiles],
      *minima[IntegerTiles];  // of the first segment's lanes; unused without scales
  float* results;
};

/// Products of blocks that have the same rows and segments. With s = the sum over one segment of coefficients × codes, the
/// result of a row and lane is the sum over the segments of x = unit[row] s + shift[row], or with scales, x = scale[lane]
/// (unit[row] s + shift[row]) + minimum[lane] sum[row].
struct IntegerRun {
  const IntegerBlock* blocks = nullptr;
  std::size_t block_count = 0;
  const Segment* segments = nullptr;
  std::size_t segment_count = 0;
  std::size_t rows = 0;
  const float *unit = nullptr, *sums = nullptr;  // [segment][PreparedRows]; sums only with scales
  bool scaled = false;
  Scalar metadata = Scalar::f16;
  std::size_t metadata_stride = 0;  // bytes from a group's scales to those of the next one
  std::size_t result_stride = 0;
  bool add = false;                     // to what is there
  const unsigned char* next = nullptr;  // what to prefetch, as many lines as are read; null: nothing
};

template <unsigned Bits>
inline constexpr std::size_t StepsOf = Bits == 3 ? 8 : 8 / Bits;
template <unsigned Bits>
constexpr std::size_t units_of(const Segment& segment) {
  return divide_up(segment.count, 4 * StepsOf<Bits>);
}

/// The codes of one step, a byte each, of `Width` lanes whose unit begins at `unit`.
template <unsigned Bits, std::size_t Step>
KVC_ALWAYS_INLINE Words codes_of_step(const std::uint32_t* unit) {
  if constexpr (Bits == 3) {
    return three_bit_codes<Step / 4, Step % 4>(load_words(unit + Step / 4 * TileLanes),
                                               load_words(unit + 2 * TileLanes));
  } else if constexpr (Bits == 8) {
    return less_offset(load_words(unit));
  } else {
    return bit_and(shift_right<Step * Bits>(load_words(unit)), words(Bits == 4 ? 0x0f0f0f0fu : 0x03030303u));
  }
}

/// Bytes 0 and 2 of a step, or with `Odd` 1 and 3, in 16 bits each.
template <unsigned Bits, std::size_t Step, bool Odd>
KVC_ALWAYS_INLINE Words short_codes_of_step(const std::uint32_t* unit) {
  if constexpr (Bits == 3) {
    const Words bytes = codes_of_step<Bits, Step>(unit);
    return Odd ? shift_shorts_right<8>(bytes) : bit_and(bytes, words(0x00ff00ffu));
  } else {
    constexpr unsigned Shift = Step * Bits + (Odd ? 8 : 0);
    if constexpr (Shift + Bits == 16) return shift_shorts_right<Shift>(load_words(unit));
    return bit_and(shift_right<Shift>(load_words(unit)), words(((1u << Bits) - 1) * 0x00010001u));
  }
}

/// Units whose sums of products of bytes fit 16 bits: a step adds two products of a code and 128, or unsigned 255.
template <unsigned Bits, bool Unsigned>
inline constexpr std::size_t UnitsOfShortSums = 32767 /
                                                (2 * ((1u << Bits) - 1) * (Unsigned ? 255 : 128)) / StepsOf<Bits>;

/// Adds the results of one segment and tile; total(row, part, i) are the sums of integers of its i-th vector. Rows 0: run.rows.
template <std::size_t Rows, unsigned Parts, class Total>
KVC_ALWAYS_INLINE void add_segment(const IntegerRun& run, const IntegerBlock& block, std::size_t segment,
                                   std::size_t tile, const unsigned char*& next, Total total) {
  const float* unit = run.unit + segment * PreparedRows;
  const float* shift = block.shift + segment * PreparedRows;
  const bool adds = run.add || segment > 0;
  float* results = block.results + tile * TileLanes;
  KVC_UNROLL
  for (std::size_t i = 0; i < TileVectors; ++i) {
    Vector scale = zero(), minimum_of_group = zero();
    if (run.scaled) {
      if (next && i % divide_up(TileVectors * 32, TileLanes * scalar_bytes(run.metadata)) == 0) {
        prefetch(next);
        next += LineBytes;
      }
      const std::size_t offset = segment * run.metadata_stride;
      scale = load_metadata(block.scales[tile] + offset, run.metadata, i * Width, Width);
      minimum_of_group = load_metadata(block.minima[tile] + offset, run.metadata, i * Width, Width);
    }
    auto add_row = [&](std::size_t r) KVC_LAMBDA_INLINE {
      const Vector sum = Parts == 2 ? fma(set(256.0f), total(r, 0, i), total(r, 1, i)) : total(r, 0, i);
      const Vector x = fma(set(unit[r]), sum, set(shift[r]));
      float* target = results + r * run.result_stride + i * Width;
      if (run.scaled) {
        const Vector of_row = set(run.sums[segment * PreparedRows + r]);
        const Vector rest = adds ? fma(minimum_of_group, of_row, load(target)) : multiply(minimum_of_group, of_row);
        store(target, fma(scale, x, rest));
      } else {
        store(target, adds ? add(load(target), x) : x);
      }
    };
    if constexpr (Rows == 0) {
      for (std::size_t r = 0; r < run.rows; ++r) add_row(r);
    } else {
      KVC_UNROLL
      for (std::size_t r = 0; r < Rows; ++r) add_row(r);
    }
  }
}

/// Sums in memory, [row][part][16 lanes]. Here and not where they are made: inlining wants both for the same target.
template <unsigned Parts>
struct StoredSums {
  const std::uint32_t* first;
  KVC_ALWAYS_INLINE Vector operator()(std::size_t row, std::size_t part, std::size_t i) const {
    return signed_to_float(load_words(first + (row * Parts + part) * TileLanes + i * Width));
  }
};

/// `Tiles` tiles of the block from number `tile` on, side by side.
template <unsigned Bits, std::size_t Rows, unsigned Parts, bool Unsigned, std::size_t Tiles>
KVC_ALWAYS_INLINE void integer_tiles(const IntegerRun& run, const IntegerBlock& block, std::size_t tile,
                                     const unsigned char*& next) {
  constexpr bool Whole = Parts == 2 && MultipliesShorts, ShortSums = SumsInShorts && !Whole;
  constexpr std::size_t Vectors = Tiles * TileVectors, Steps = StepsOf<Bits>, UnitRows = Bits == 3 ? 3 : 1;
  constexpr std::size_t SummedParts = Whole ? 1 : Parts, Sums = Rows * SummedParts;
  // Two chains of additions where one per result would wait for itself.
  constexpr std::size_t Chains = !Whole && !ShortSums && Steps > 1 && Sums * Vectors < 8 ? 2 : 1;
  constexpr std::size_t Lines = Tiles * UnitRows;  // of a unit
  for (std::size_t segment = 0; segment < run.segment_count; ++segment) {
    Words sum[Chains][Sums][Vectors];
    KVC_UNROLL
    for (std::size_t i = 0; i < Chains * Sums * Vectors; ++i)
      sum[i / (Sums * Vectors)][i / Vectors % Sums][i % Vectors] = words(0);
    Words wide[Sums][Vectors];  // of sums in 16 bits
    if constexpr (ShortSums) {
      KVC_UNROLL
      for (std::size_t i = 0; i < Sums * Vectors; ++i) wide[i / Vectors][i % Vectors] = words(0);
    }
    const std::uint32_t* coefficient = block.coefficients + run.segments[segment].offset / 4;
    const std::uint32_t* codes[Tiles];
    KVC_UNROLL
    for (std::size_t t = 0; t < Tiles; ++t)
      codes[t] = block.codes[tile + t] + run.segments[segment].dword_row * TileLanes;
    std::size_t short_units = 0;  // in the sums of 16 bits
    for (std::size_t unit = units_of<Bits>(run.segments[segment]); unit > 0; --unit) {
      auto add_part = [&]<std::size_t Step, std::size_t Part>() KVC_LAMBDA_INLINE {
        Words code[Vectors];
        KVC_UNROLL
        for (std::size_t i = 0; i < Vectors; ++i) {
          const std::uint32_t* from = codes[i / TileVectors] + i % TileVectors * Width;
          if constexpr (Whole)
            code[i] = short_codes_of_step<Bits, Step, Part == 1>(from);
          else
            code[i] = codes_of_step<Bits, Step>(from);
        }
        KVC_UNROLL
        for (std::size_t r = 0; r < Rows; ++r) {
          // One line at a time, evenly spread over the unit: two in a row fill the buffers that loads wait for. The second
          // prefetch is for codes that go by faster than lines waiting in the second level come one by one.
          KVC_UNROLL
          for (std::size_t line = 0; line < Lines; ++line)
            if (line * Rows * Parts * Steps / Lines == (Step * Parts + Part) * Rows + r && next) {
              prefetch(next + line * LineBytes);
              prefetch_near(codes[line / UnitRows] + line % UnitRows * TileLanes);
            }
          const Words held = words(coefficient[(r * Parts + Part) * IntegerDwords + Step]);
          KVC_UNROLL
          for (std::size_t i = 0; i < Vectors; ++i) {
            Words& total = sum[Step % Chains][Whole ? r : r * Parts + Part][i];
            total = add_dot<Unsigned, Whole>(total, code[i], held);
          }
        }
      };
      auto step = [&]<std::size_t Step>() KVC_LAMBDA_INLINE {
        add_part.template operator()<Step, 0>();
        if constexpr (Parts == 2) add_part.template operator()<Step, 1>();
      };
      for_each_step<Steps>(step);
      coefficient += Steps;
      if (next) next += Lines * LineBytes;
      KVC_UNROLL
      for (std::size_t t = 0; t < Tiles; ++t) codes[t] += UnitRows * TileLanes;
      if constexpr (ShortSums) {
        if (++short_units == UnitsOfShortSums<Bits, Unsigned> || unit == 1) {
          short_units = 0;
          KVC_UNROLL
          for (std::size_t i = 0; i < Sums * Vectors; ++i) {
            Words& shorts = sum[0][i / Vectors][i % Vectors];
            wide[i / Vectors][i % Vectors] = add_short_sums(wide[i / Vectors][i % Vectors], shorts);
            shorts = words(0);
          }
        }
      }
    }
    KVC_UNROLL
    for (std::size_t t = 0; t < Tiles; ++t)
      add_segment<Rows, SummedParts>(run, block, segment, tile + t, next,
                                     [&](std::size_t r, std::size_t part, std::size_t i) KVC_LAMBDA_INLINE {
                                       const std::size_t s = r * SummedParts + part, vector = t * TileVectors + i;
                                       if constexpr (ShortSums) return signed_to_float(wide[s][vector]);
                                       Words total = sum[0][s][vector];
                                       if constexpr (Chains == 2) total = add_words(total, sum[1][s][vector]);
                                       return signed_to_float(total);
                                     });
  }
}

template <unsigned Bits, std::size_t Rows, unsigned Parts, bool Unsigned>
KVC_ALWAYS_INLINE void integer_block(const IntegerRun& run, const IntegerBlock& block, const unsigned char*& next) {
  // All tiles side by side, if the registers hold their sums and codes, a coefficient and a mask.
  constexpr std::size_t Sums = Rows * (MultipliesShorts ? 1 : Parts), Vectors = IntegerTiles * TileVectors;
  if constexpr ((Sums + 1) * Vectors + 2 <= Registers) {
    integer_tiles<Bits, Rows, Parts, Unsigned, IntegerTiles>(run, block, 0, next);
  } else {
    for (std::size_t tile = 0; tile < IntegerTiles; ++tile)
      integer_tiles<Bits, Rows, Parts, Unsigned, 1>(run, block, tile, next);
  }
}

/// How coefficients are quantized: to 16 bits (two signed parts, or whole), one signed or one unsigned part.
enum class PartKind : std::uint8_t { two, one, one_unsigned };

template <unsigned Bits, std::size_t Rows, unsigned Parts, bool Unsigned>
void integer_run(const IntegerRun& run) {
  const unsigned char* next = run.next;
  for (std::size_t i = 0; i < run.block_count; ++i)
    integer_block<Bits, Rows, Parts, Unsigned>(run, run.blocks[i], next);
}

using IntegerFunction = void (*)(const IntegerRun&);
struct IntegerFunctions {
  IntegerFunction of[3][MaxBlockRows + 1];  // [PartKind][rows]
  std::size_t most_rows;
};
/// Make::get<rows, parts, unsigned>() of every block of codes of Bits bits.
template <unsigned Bits, class Make>
constexpr IntegerFunctions make_integer_functions() {
  IntegerFunctions functions = {{}, Make::MostRows};
  auto fill = [&]<std::size_t Before>() {
    constexpr std::size_t Rows = Before + 1;
    functions.of[0][Rows] = Make::template get<Rows, 2, false>();
    if constexpr (Bits < 8) {  // part_kind() asks for two parts of 8 bits
      functions.of[1][Rows] = Make::template get<Rows, 1, false>();
      functions.of[2][Rows] = Make::template get<Rows, 1, true>();  // the codes must fit signed bytes
    }
  };
  for_each_step<Make::MostRows>(fill);
  return functions;
}
template <unsigned Bits, class Make>
inline constexpr IntegerFunctions IntegerFunctionsOf = make_integer_functions<Bits, Make>();

template <template <unsigned> class Make>
inline const IntegerFunctions& functions_of_width(unsigned bits) {
  return bits == 2   ? IntegerFunctionsOf<2, Make<2>>
         : bits == 3 ? IntegerFunctionsOf<3, Make<3>>
         : bits == 4 ? IntegerFunctionsOf<4, Make<4>>
                     : IntegerFunctionsOf<8, Make<8>>;
}

template <unsigned Bits>
struct InRegisters {
  static constexpr std::size_t MostRows = IntegerRows;
  template <std::size_t Rows, unsigned Parts, bool Unsigned>
  static constexpr IntegerFunction get() {
    return integer_run<Bits, Rows, Parts, Unsigned>;
  }
};
inline const IntegerFunctions& integer_functions(unsigned bits) {
  return functions_of_width<InRegisters>(bits);
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
