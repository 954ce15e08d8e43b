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
namespace kvc::kernels {
inline namespace KVC_ABI {
namespace KVC_TARGET {

inline constexpr std::size_t IntegerChunk = 256;                // coefficients of a row that are quantized together
inline constexpr std::size_t IntegerDwords = IntegerChunk / 4;  // of one part of them

/// Coefficients: [row][part][IntegerDwords]. With s = the sum of coefficients × codes over all units, the result of a row and
/// lane is x = unit[row] s + shift[row], or with scales, x = scale[lane] (unit[row] s + shift[row]) + minimum[lane] sum[row].
struct IntegerBlock {
  const std::uint32_t* codes[IntegerTiles] = {};
  std::size_t units = 0;
  const std::uint32_t* coefficients = nullptr;
  const float *unit = nullptr, *shift = nullptr;                      // [row]
  const float *scales = nullptr, *minima = nullptr, *sums = nullptr;  // [lane], [lane], [row]; or null
  Results results = {};
  const unsigned char* next[IntegerTiles] = {};  // lines to prefetch with the first unit; null: none
  std::size_t next_stride = 0;                   // bytes to those of the next unit
};

template <unsigned Bits>
inline constexpr std::size_t StepsOf = Bits == 3 ? 8 : 8 / Bits;

/// The codes of one step, a byte each, of `Width` lanes whose unit begins at `unit`.
template <unsigned Bits, std::size_t Step>
KVC_ALWAYS_INLINE Words codes_of_step(const std::uint32_t* unit) {
  if constexpr (Bits == 3) {
    return three_bit_codes<Step / 4, Step % 4>(load_words(unit + Step / 4 * TileLanes),
                                               load_words(unit + 2 * TileLanes));
  } else if constexpr (Bits == 8) {
    return load_words(unit);
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

template <unsigned Bits, std::size_t Rows, unsigned Parts, bool Unsigned, std::size_t Tiles>
KVC_ALWAYS_INLINE void integer_tiles(const IntegerBlock& block, std::size_t tile) {
  constexpr bool Whole = Parts == 2 && MultipliesShorts, ShortSums = SumsInShorts && !Whole;
  constexpr std::size_t Vectors = Tiles * TileVectors, Steps = StepsOf<Bits>, UnitRows = Bits == 3 ? 3 : 1;
  constexpr std::size_t Sums = Rows * (Whole ? 1 : Parts);
  // Two chains of additions where one per result would wait for itself.
  constexpr std::size_t Chains = !Whole && !ShortSums && Steps > 1 && Sums * Vectors < 8 ? 2 : 1;
  Words sum[Chains][Sums][Vectors];
  KVC_UNROLL
  for (std::size_t i = 0; i < Chains * Sums * Vectors; ++i)
    sum[i / (Sums * Vectors)][i / Vectors % Sums][i % Vectors] = words(0);
  Words wide[Sums][Vectors];  // of sums of 16 bits
  if constexpr (ShortSums) {
    KVC_UNROLL
    for (std::size_t i = 0; i < Sums * Vectors; ++i) wide[i / Vectors][i % Vectors] = words(0);
  }
  const std::uint32_t* coefficient = block.coefficients;
  const std::uint32_t* codes[Tiles];
  KVC_UNROLL
  for (std::size_t t = 0; t < Tiles; ++t) codes[t] = block.codes[tile + t];
  const unsigned char* next[Tiles];
  KVC_UNROLL
  for (std::size_t t = 0; t < Tiles; ++t) next[t] = block.next[tile + t];
  std::size_t narrow_units = 0;  // in the sums of 16 bits
  for (std::size_t unit = 0; unit < block.units; ++unit) {
    if (next[0]) {
      KVC_UNROLL
      for (std::size_t i = 0; i < Tiles * UnitRows; ++i) prefetch(next[i / UnitRows] + i % UnitRows * LineBytes);
      KVC_UNROLL
      for (std::size_t t = 0; t < Tiles; ++t) next[t] += block.next_stride;
    }
    auto step = [&]<std::size_t Step>() KVC_LAMBDA_INLINE {
      auto add_part = [&]<std::size_t Part>() KVC_LAMBDA_INLINE {
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
          const Words held = words(coefficient[(r * Parts + Part) * IntegerDwords + Step]);
          KVC_UNROLL
          for (std::size_t i = 0; i < Vectors; ++i) {
            Words& total = sum[Step % Chains][Whole ? r : r * Parts + Part][i];
            total = add_dot<Unsigned, Whole>(total, code[i], held);
          }
        }
      };
      add_part.template operator()<0>();
      if constexpr (Parts == 2) add_part.template operator()<1>();
    };
    step.template operator()<0>();
    if constexpr (Steps > 1) step.template operator()<1>();
    if constexpr (Steps > 2) {
      step.template operator()<2>();
      step.template operator()<3>();
    }
    if constexpr (Steps > 4) {
      step.template operator()<4>();
      step.template operator()<5>();
      step.template operator()<6>();
      step.template operator()<7>();
    }
    coefficient += Steps;
    KVC_UNROLL
    for (std::size_t t = 0; t < Tiles; ++t) codes[t] += UnitRows * TileLanes;
    if constexpr (ShortSums) {
      if (++narrow_units == UnitsOfShortSums<Bits, Unsigned> || unit + 1 == block.units) {
        narrow_units = 0;
        KVC_UNROLL
        for (std::size_t i = 0; i < Chains * Sums * Vectors; ++i) {
          Words& narrow = sum[i / (Sums * Vectors)][i / Vectors % Sums][i % Vectors];
          Words& total = wide[i / Vectors % Sums][i % Vectors];
          total = add_short_sums(total, narrow);
          narrow = words(0);
        }
      }
    }
  }
  KVC_UNROLL
  for (std::size_t r = 0; r < Rows; ++r) {
    const Vector unit = set(block.unit[r]), shift = set(block.shift[r]);
    const std::size_t lane = tile * TileLanes;
    float* target = block.results.data + r * block.results.stride + lane;
    KVC_UNROLL
    for (std::size_t i = 0; i < Vectors; ++i) {
      Vector part[Sums / Rows];
      KVC_UNROLL
      for (std::size_t k = 0; k < Sums / Rows; ++k) {
        const std::size_t s = r * (Sums / Rows) + k;
        Words total = ShortSums ? wide[s][i] : sum[0][s][i];
        if constexpr (Chains == 2 && !ShortSums) total = add_words(total, sum[1][s][i]);
        part[k] = signed_to_float(total);
      }
      Vector x = fma(unit, Sums == 2 * Rows ? fma(set(256.0f), part[0], part[Sums / Rows - 1]) : part[0], shift);
      if (block.scales)
        x = fma(load(block.scales + lane + i * Width), x,
                multiply(load(block.minima + lane + i * Width), set(block.sums[r])));
      store(target + i * Width, block.results.add ? add(load(target + i * Width), x) : x);
    }
  }
}

template <unsigned Bits, std::size_t Rows, unsigned Parts, bool Unsigned>
void integer_block(const IntegerBlock& block) {
  // Sums of all tiles side by side, as far as the registers hold them next to the tile's codes and coefficients.
  constexpr std::size_t Sums = Rows * (MultipliesShorts ? 1 : Parts), Vectors = IntegerTiles * TileVectors;
  if constexpr ((Sums + 1) * Vectors <= Registers) {
    integer_tiles<Bits, Rows, Parts, Unsigned, IntegerTiles>(block, 0);
  } else {
    for (std::size_t tile = 0; tile < IntegerTiles; ++tile) integer_tiles<Bits, Rows, Parts, Unsigned, 1>(block, tile);
  }
}

/// How coefficients are quantized: to two signed parts, one signed or one unsigned part.
enum class PartKind : std::uint8_t { two, one, one_unsigned };

using IntegerBlockFunction = void (*)(const IntegerBlock&);
struct IntegerBlocks {
  IntegerBlockFunction of[3][IntegerRows + 1];  // [PartKind][rows]
};
template <unsigned Bits>
constexpr IntegerBlocks make_integer_blocks() {
  IntegerBlocks blocks = {};
  auto fill = [&]<std::size_t Rows>() {
    if constexpr (Rows <= IntegerRows) {
      blocks.of[0][Rows] = integer_block<Bits, Rows, 2, false>;
      if constexpr (Bits < 8) {  // part_kind() wants two parts of 8 bits
        blocks.of[1][Rows] = integer_block<Bits, Rows, 1, false>;
        blocks.of[2][Rows] = integer_block<Bits, Rows, 1, true>;  // the codes must fit signed bytes
      }
    }
  };
  fill.template operator()<1>();
  fill.template operator()<2>();
  fill.template operator()<3>();
  fill.template operator()<4>();
  return blocks;
}
template <unsigned Bits>
inline constexpr IntegerBlocks IntegerBlocksOf = make_integer_blocks<Bits>();

inline const IntegerBlocks& integer_blocks(unsigned bits) {
  return bits == 2   ? IntegerBlocksOf<2>
         : bits == 3 ? IntegerBlocksOf<3>
         : bits == 4 ? IntegerBlocksOf<4>
                     : IntegerBlocksOf<8>;
}

}  // namespace KVC_TARGET
}  // namespace KVC_ABI
}  // namespace kvc::kernels
