// Integer products of codes with quantized coefficients: rows × tiles in the registers. Re-included, no guard.
//
// A step multiplies four depths: those whose codes one shift and mask leave in the four bytes of a dword. Four coefficients
// lie in a dword in the same order:
//
//   8 bits  step 0: d 0..3                      one dword of codes is one step
//   4 bits  step k: d k, 2 + k, 4 + k, 6 + k    two steps, shifted by 4 k
//   2 bits  step k: d k, 4 + k, 8 + k, 12 + k   four steps, shifted by 2 k
//   3 bits  the same of either half of a unit, eight steps; the high bits come from the unit's third row
//
// One dword of coefficients is one part. Where coefficients of 16 bits are multiplied whole (MultipliesShorts), the first
// "part" holds those of the step's bytes 0 and 2, the second those of its bytes 1 and 3.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline constexpr std::size_t IntegerChunk = 256;                // coefficients of a row that are quantized together
inline constexpr std::size_t IntegerDwords = IntegerChunk / 4;  // of one part of them
inline constexpr std::size_t StretchGranule = 16;  // stretches begin at multiples of it among the coefficients
inline constexpr std::size_t MaxStretches = IntegerChunk / StretchGranule;
inline constexpr std::size_t MaxBlockRows = 8;   // of any target
inline constexpr std::size_t PreparedRows = 16;  // rows whose quantized coefficients are kept at a time

/// Consecutive depths of one group: whole dwords, except at the group's or the area's end.
struct Stretch {
  std::size_t depth, count;       // relative to the area
  std::size_t dword_row, offset;  // of its codes in a tile; of its coefficients in their buffer
  std::size_t metadata_row;
};

/// A pair of tiles whose products are wanted.
struct IntegerBlock {
  const std::uint32_t* codes[IntegerTiles];                      // of whole tiles
  const std::uint32_t* coefficients;                             // [row][part][IntegerDwords]
  const float* shift;                                            // [stretch][PreparedRows]
  const unsigned char *scales[IntegerTiles], *minima[IntegerTiles];  // of the first stretch's lanes; unused without scales
  float* results;
};

/// Products of blocks that have the same rows and stretches. With s = the sum over one stretch of coefficients × codes, the
/// result of a row and lane is the sum over the stretches of x = unit[row] s + shift[row], or with scales, of x = scale[lane]
/// (unit[row] s + shift[row]) + minimum[lane] sum[row].
struct IntegerJob {
  const IntegerBlock* blocks = nullptr;
  std::size_t block_count = 0;
  const Stretch* stretches = nullptr;
  std::size_t stretch_count = 0;
  std::size_t rows = 0;
  const float *unit = nullptr, *sums = nullptr;  // [stretch][PreparedRows]; sums only with scales
  bool scaled = false;
  Scalar metadata = Scalar::f16;
  std::size_t metadata_stride = 0;  // bytes from a group's scales to those of the next one
  std::size_t result_stride = 0;
  bool add = false;                     // to what is there
  const unsigned char* next = nullptr;  // what to prefetch, as many lines as are read; null: nothing
};

/// Lines to prefetch, one after the other, or none.
struct PrefetchQueue {
  const unsigned char* at;

  KVC_ALWAYS_INLINE bool any() const { return at != nullptr; }
  KVC_ALWAYS_INLINE void fetch() {
    prefetch(at);
    at += LineBytes;
  }
};

template <unsigned Bits>
inline constexpr std::size_t StepsOf = Bits == 3 ? 8 : 8 / Bits;
template <unsigned Bits>
constexpr std::size_t units_of(const Stretch& stretch) {
  return divide_up(stretch.count, 4 * StepsOf<Bits>);
}

/// Four codes of 3 bits a dword, one in each byte, of step `Step` of either half of a unit: d = 16 half + 4 byte + Step.
/// `high` is the row of high bits, shifted right by 4 in the second half.
template <std::size_t Step>
KVC_ALWAYS_INLINE Words three_bit_codes(Words low, Words high) {
  const Words low_part = bit_and(shift_right<2 * Step>(low), words(0x03030303u));
  if constexpr (Step >= 2)  // bit `Step` of each byte is wanted at bit 2
    return bit_or(low_part, bit_and(shift_right<Step - 2>(high), words(0x04040404u)));
  else
    return bit_or(low_part, bit_and(shift_left<2 - Step>(high), words(0x04040404u)));
}

/// The codes of some steps of a unit, called a turn, in `Width` lanes. A turn's steps are unrolled; the turns of a unit are a
/// loop. Only units of 3 bits have two turns, and only where the registers can hold their dwords.
template <unsigned Bits>
struct TurnCodes {
  static constexpr bool Holds = Registers >= 32;
  static constexpr std::size_t Turns = Bits == 3 && Holds ? 2 : 1, Steps = StepsOf<Bits> / Turns;
  const std::uint32_t* unit;
  Words low, high;  // where they are held

  KVC_ALWAYS_INLINE void begin(const std::uint32_t* first) {
    unit = first;
    if constexpr (Holds) low = load_words(unit);
    if constexpr (Holds && Bits == 3) high = load_words(unit + 2 * TileLanes);
  }
  KVC_ALWAYS_INLINE void next_turn() {
    low = load_words(unit + TileLanes);
    high = shift_right<4>(high);
  }
  /// Those of one step, a byte each.
  template <std::size_t Step>
  KVC_ALWAYS_INLINE Words bytes() const {
    if constexpr (Bits == 3 && !Holds) {
      const Words high_bits = load_words(unit + 2 * TileLanes);
      return three_bit_codes<Step % 4>(load_words(unit + Step / 4 * TileLanes),
                                       Step < 4 ? high_bits : shift_right<4>(high_bits));
    }
    const Words dwords = Holds ? low : load_words(unit);
    if constexpr (Bits == 3) return three_bit_codes<Step % 4>(dwords, high);
    if constexpr (Bits == 8) return less_offset(dwords);
    return bit_and(shift_right<Step * Bits>(dwords), words(Bits == 4 ? 0x0f0f0f0fu : 0x03030303u));
  }
  /// Bytes 0 and 2 of a step, or with `Odd` 1 and 3, in 16 bits each.
  template <std::size_t Step, bool Odd>
  KVC_ALWAYS_INLINE Words shorts() const {
    if constexpr (Bits == 3) {
      return Odd ? shift_shorts_right<8>(bytes<Step>()) : bit_and(bytes<Step>(), words(0x00ff00ffu));
    } else {
      constexpr unsigned Shift = Step * Bits + (Odd ? 8 : 0);
      const Words dwords = Holds ? low : load_words(unit);
      if constexpr (Shift + Bits == 16) return shift_shorts_right<Shift>(dwords);
      return bit_and(shift_right<Shift>(dwords), words(((1u << Bits) - 1) * 0x00010001u));
    }
  }
};

/// Units whose sums of products of bytes fit 16 bits: a step adds two products of a code and 128, or unsigned 255.
template <unsigned Bits, bool Unsigned>
inline constexpr std::size_t UnitsOfShortSums = 32767 /
                                                (2 * ((1u << Bits) - 1) * (Unsigned ? 255 : 128)) / StepsOf<Bits>;

inline constexpr float ZeroTile[TileLanes] = {};

/// Adds the results of one stretch and tile; total(row, part, i) are the sums of integers of its i-th vector. With Rows = 0 the
/// job says how many rows there are.
template <std::size_t Rows, unsigned Parts, class Total>
KVC_ALWAYS_INLINE void add_stretch(const IntegerJob& job, const IntegerBlock& block, std::size_t stretch,
                                   std::size_t tile, PrefetchQueue& queue, Total total) {
  const float* unit = job.unit + stretch * PreparedRows;
  const float* shift = block.shift + stretch * PreparedRows;
  const float* sums = job.scaled ? job.sums + stretch * PreparedRows : unit;
  float* results = block.results + tile * TileLanes;
  const bool adds = job.add || stretch > 0;
  const float* old = adds ? results : ZeroTile;
  const std::size_t old_stride = adds ? job.result_stride : 0, offset = stretch * job.metadata_stride;
  KVC_UNROLL
  for (std::size_t i = 0; i < TileVectors; ++i) {
    Vector scale = set(1.0f), minimum_of_group = zero();
    if (job.scaled) {
      if (queue.any() && i % divide_up(TileVectors * 32, TileLanes * scalar_bytes(job.metadata)) == 0) queue.fetch();
      scale = load_metadata(block.scales[tile] + offset, job.metadata, i * Width, Width);
      minimum_of_group = load_metadata(block.minima[tile] + offset, job.metadata, i * Width, Width);
    }
    const auto add_row = [&](std::size_t r) KVC_LAMBDA_INLINE {
      const Vector sum = Parts == 2 ? fma(set(256.0f), total(r, 0, i), total(r, 1, i)) : total(r, 0, i);
      const Vector x = fma(set(unit[r]), sum, set(shift[r]));
      const Vector rest = fma(minimum_of_group, set(sums[r]), load(old + r * old_stride + i * Width));
      store(results + r * job.result_stride + i * Width, fma(scale, x, rest));
    };
    if constexpr (Rows == 0) {
      for (std::size_t r = 0; r < job.rows; ++r) add_row(r);
    } else {
      KVC_UNROLL
      for (std::size_t r = 0; r < Rows; ++r) add_row(r);
    }
  }
}

/// Sums in memory, [row][part][16 lanes]. It is here and not where they are made because inlining wants it to be of the same target as
/// add_stretch().
template <unsigned Parts>
struct StoredSums {
  const std::uint32_t* first;
  KVC_ALWAYS_INLINE Vector operator()(std::size_t row, std::size_t part, std::size_t i) const {
    return signed_to_float(load_words(first + (row * Parts + part) * TileLanes + i * Width));
  }
};

/// `Tiles` tiles of the block from number `tile` on, side by side.
template <unsigned Bits, std::size_t Rows, unsigned Parts, bool Unsigned, std::size_t Tiles>
KVC_ALWAYS_INLINE void multiply_tiles(const IntegerJob& job, const IntegerBlock& block, std::size_t tile,
                                      PrefetchQueue& queue) {
  using Codes = TurnCodes<Bits>;
  constexpr bool Whole = Parts == 2 && MultipliesShorts, ShortSums = SumsInShorts && !Whole;
  constexpr std::size_t Vectors = Tiles * TileVectors, UnitRows = Bits == 3 ? 3 : 1;
  constexpr std::size_t SummedParts = Whole ? 1 : Parts, Sums = Rows * SummedParts;
  // Two chains of additions where one per result would wait for itself.
  constexpr std::size_t SumChains = !Whole && !ShortSums && Codes::Steps > 1 && Sums * Vectors < 8 ? 2 : 1;
  constexpr std::size_t Lines = Tiles * UnitRows, LinesOfTurn = divide_up(Lines, Codes::Turns);  // of a unit
  for (std::size_t stretch = 0; stretch < job.stretch_count; ++stretch) {
    Words sum[SumChains][Sums][Vectors];
    KVC_UNROLL
    for (std::size_t i = 0; i < SumChains * Sums * Vectors; ++i)
      sum[i / (Sums * Vectors)][i / Vectors % Sums][i % Vectors] = words(0);
    Words wide[Sums][Vectors];  // of sums in 16 bits
    if constexpr (ShortSums) {
      KVC_UNROLL
      for (std::size_t i = 0; i < Sums * Vectors; ++i) wide[i / Vectors][i % Vectors] = words(0);
    }
    const std::uint32_t* coefficient = block.coefficients + job.stretches[stretch].offset / 4;
    const std::uint32_t* codes[Tiles];
    KVC_UNROLL
    for (std::size_t t = 0; t < Tiles; ++t)
      codes[t] = block.codes[tile + t] + job.stretches[stretch].dword_row * TileLanes;
    std::size_t short_units = 0;  // in the sums of 16 bits
    for (std::size_t unit = units_of<Bits>(job.stretches[stretch]); unit > 0; --unit) {
      Codes of[Vectors];
      KVC_UNROLL
      for (std::size_t i = 0; i < Vectors; ++i) of[i].begin(codes[i / TileVectors] + i % TileVectors * Width);
      for (std::size_t turn = 0; turn < Codes::Turns; ++turn) {
        const std::uint32_t* near = turn == 0 ? codes[0] : codes[Tiles - 1];
        if (turn > 0) {
          KVC_UNROLL
          for (std::size_t i = 0; i < Vectors; ++i) of[i].next_turn();
        }
        auto add_part = [&]<std::size_t Step, std::size_t Part>() KVC_LAMBDA_INLINE {
          Words code[Vectors];
          KVC_UNROLL
          for (std::size_t i = 0; i < Vectors; ++i) {
            if constexpr (Whole)
              code[i] = of[i].template shorts<Step, Part == 1>();
            else
              code[i] = of[i].template bytes<Step>();
          }
          KVC_UNROLL
          for (std::size_t r = 0; r < Rows; ++r) {
            // One line at a time, evenly spread over the turn: two in a row fill the buffers that loads wait for. The second
            // prefetch is for codes that go by faster than lines waiting in the second level come one by one.
            KVC_UNROLL
            for (std::size_t line = 0; line < LinesOfTurn; ++line)
              if (line * Rows * Parts * Codes::Steps / LinesOfTurn == (Step * Parts + Part) * Rows + r) {
                if (!queue.any() || (Lines % Codes::Turns != 0 && line + 1 == LinesOfTurn && turn == 0)) continue;
                queue.fetch();
                prefetch_near(Codes::Turns == 1 ? codes[line / UnitRows] + line % UnitRows * TileLanes
                                                : near + line * TileLanes);
              }
            const Words held = words(coefficient[(r * Parts + Part) * IntegerDwords + Step]);
            KVC_UNROLL
            for (std::size_t i = 0; i < Vectors; ++i) {
              Words& total = sum[Step % SumChains][Whole ? r : r * Parts + Part][i];
              total = add_dot<Unsigned, Whole>(total, code[i], held);
            }
          }
        };
        auto step = [&]<std::size_t Step>() KVC_LAMBDA_INLINE {
          add_part.template operator()<Step, 0>();
          if constexpr (Parts == 2) add_part.template operator()<Step, 1>();
        };
        for_each_step<Codes::Steps>(step);
        coefficient += Codes::Steps;
      }
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
      add_stretch<Rows, SummedParts>(job, block, stretch, tile + t, queue,
                                     [&](std::size_t r, std::size_t part, std::size_t i) KVC_LAMBDA_INLINE {
                                       const std::size_t s = r * SummedParts + part, vector = t * TileVectors + i;
                                       if constexpr (ShortSums) return signed_to_float(wide[s][vector]);
                                       Words total = sum[0][s][vector];
                                       if constexpr (SumChains == 2) total = add_words(total, sum[1][s][vector]);
                                       return signed_to_float(total);
                                     });
  }
}

/// How coefficients are quantized: to 16 bits (two signed parts, or whole), one signed or one unsigned part.
enum class PartKind : std::uint8_t { two, one, one_unsigned };

template <unsigned Bits, std::size_t Rows, unsigned Parts, bool Unsigned>
void multiply_blocks(const IntegerJob& job) {
  // All tiles side by side, if the registers hold their sums and codes, a coefficient and a mask.
  constexpr std::size_t Sums = Rows * (MultipliesShorts ? 1 : Parts), Vectors = IntegerTiles * TileVectors;
  constexpr std::size_t Tiles = (Sums + 1) * Vectors + 2 <= Registers ? IntegerTiles : 1;
  PrefetchQueue queue{job.next};
  for (std::size_t i = 0; i < job.block_count; ++i)
    for (std::size_t tile = 0; tile < IntegerTiles; tile += Tiles)
      multiply_tiles<Bits, Rows, Parts, Unsigned, Tiles>(job, job.blocks[i], tile, queue);
}

/// Whether coefficients of one part serve codes of so many bits: 8 bits of a query would be worse than 8-bit codes.
constexpr bool takes_one_part(unsigned bits) {
  return bits == 2 || bits == 4;
}

using IntegerFunction = void (*)(const IntegerJob&);
/// Of one width of codes.
struct IntegerFunctions {
  IntegerFunction of[3][MaxBlockRows + 1];  // [PartKind][rows]
  std::size_t most_rows[3];                 // [PartKind]
};
template <unsigned Bits>
constexpr IntegerFunctions make_integer_functions() {
  // Codes of 2 bits meet coefficients of two parts only where keys are uneven.
  constexpr std::size_t RowsOfTwo = Bits == 2 ? smaller(2, IntegerRows) : IntegerRows;
  IntegerFunctions functions = {{}, {RowsOfTwo, IntegerRows, IntegerRows}};
  auto fill = [&]<std::size_t Before>() {
    constexpr std::size_t Rows = Before + 1;
    if constexpr (Rows <= RowsOfTwo) functions.of[0][Rows] = multiply_blocks<Bits, Rows, 2, false>;
    if constexpr (takes_one_part(Bits)) {
      functions.of[1][Rows] = multiply_blocks<Bits, Rows, 1, false>;
      functions.of[2][Rows] = multiply_blocks<Bits, Rows, 1, true>;  // the codes must fit signed bytes
    }
  };
  for_each_step<IntegerRows>(fill);
  return functions;
}
template <unsigned Bits>
inline constexpr IntegerFunctions IntegerFunctionsOf = make_integer_functions<Bits>();

inline const IntegerFunctions& integer_functions(unsigned bits) {
  return bits == 2   ? IntegerFunctionsOf<2>
         : bits == 3 ? IntegerFunctionsOf<3>
         : bits == 4 ? IntegerFunctionsOf<4>
                     : IntegerFunctionsOf<8>;
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
