// Products of unquantized blocks. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

template <Scalar Type>
struct StoredAs {
  using Element = std::uint16_t;
};
template <>
struct StoredAs<Scalar::f32> {
  using Element = float;
};

template <Scalar Type>
KVC_ALWAYS_INLINE Vector load_as(const typename StoredAs<Type>::Element* p) {
  if constexpr (Type == Scalar::f32)
    return load(p);
  else if constexpr (Type == Scalar::f16)
    return load_half(p);
  else
    return load_bfloat(p);
}

/// One block of rows × whole tiles.
struct DenseBlock {
  const void* first;  // element of the first tile at the window's first p
  std::size_t p_stride, tile_stride, p_count;
  const float* coefficients;
  std::size_t coefficient_stride;
  Results results;
  const unsigned char* next;  // what to prefetch, as many bytes as the block reads; null: nothing
};

template <Scalar Type, std::size_t Rows, std::size_t Tiles>
void dense_block(const DenseBlock& block) {
  constexpr std::size_t Vectors = Tiles * TileVectors;
  constexpr std::size_t StepBytes = Tiles * TileLanes * sizeof(typename StoredAs<Type>::Element);
  constexpr std::size_t StepLines = divide_up(StepBytes, LineBytes);
  const Results results = block.results;
  Vector sum[Rows][Vectors];
  KVC_UNROLL
  for (std::size_t r = 0; r < Rows; ++r) {
    KVC_UNROLL
    for (std::size_t i = 0; i < Vectors; ++i)
      sum[r][i] = results.add ? load(results.data + r * results.stride + i * Width) : zero();
  }
  const float* coefficient = block.coefficients;
  const std::size_t row_stride = block.coefficient_stride, tile_stride = block.tile_stride, p_stride = block.p_stride;
  const auto* x = static_cast<const typename StoredAs<Type>::Element*>(block.first);
  const unsigned char* next = block.next;
  for (std::size_t p = 0; p < block.p_count; ++p, x += p_stride, ++coefficient) {
    if (next) {  // what a step reads, in the order of memory, whatever the block's order
      KVC_UNROLL
      for (std::size_t line = 0; line < StepLines; ++line) prefetch(next + line * LineBytes);
      next += StepBytes;
    }
    if constexpr (Rows < Vectors) {  // hold what is fewer: the rows' coefficients or the tiles' elements
      Vector held[Rows];
      KVC_UNROLL
      for (std::size_t r = 0; r < Rows; ++r) held[r] = set(coefficient[r * row_stride]);
      KVC_UNROLL
      for (std::size_t i = 0; i < Vectors; ++i) {
        Vector element = load_as<Type>(x + i / TileVectors * tile_stride + i % TileVectors * Width);
        if constexpr (Rows > 1) element = opaque(element);  // one load: g++ would repeat it as operand of every product
        KVC_UNROLL
        for (std::size_t r = 0; r < Rows; ++r) sum[r][i] = fma(held[r], element, sum[r][i]);
      }
    } else {
      Vector held[Vectors];
      KVC_UNROLL
      for (std::size_t i = 0; i < Vectors; ++i)
        held[i] = load_as<Type>(x + i / TileVectors * tile_stride + i % TileVectors * Width);
      KVC_UNROLL
      for (std::size_t r = 0; r < Rows; ++r) {
        const Vector factor = set(coefficient[r * row_stride]);
        KVC_UNROLL
        for (std::size_t i = 0; i < Vectors; ++i) sum[r][i] = fma(factor, held[i], sum[r][i]);
      }
    }
  }
  KVC_UNROLL
  for (std::size_t r = 0; r < Rows; ++r) {
    KVC_UNROLL
    for (std::size_t i = 0; i < Vectors; ++i) store(results.data + r * results.stride + i * Width, sum[r][i]);
  }
}

using DenseBlockFunction = void (*)(const DenseBlock&);
template <Scalar Type>
struct MakeDenseBlock {
  static constexpr std::size_t HeldPerTile = 0;
  template <std::size_t Rows, std::size_t Tiles>
  static constexpr DenseBlockFunction get() {
    return dense_block<Type, Rows, Tiles>;
  }
};
template <Scalar Type>
inline constexpr auto DenseBlocks = make_block_functions<DenseBlockFunction, MakeDenseBlock<Type>>();

struct DenseKernel {
  static constexpr std::size_t HeldPerTile = 0;
  static constexpr bool PreparesRows = false;

  const DenseLayout& layout;
  const void* block;
  const Window& window;
  const Coefficients& coefficients;
  const BlockFunctions<DenseBlockFunction>& functions;

  std::size_t tiles() const { return divide_up(window.lanes, TileLanes); }
  /// When prefetching, a line's worth a step: bursts of prefetches fill the buffers that loads wait for.
  std::size_t most_tiles() const {
    return coefficients.ahead != 0 ? LineBytes / (TileLanes * scalar_bytes(layout.type)) : MaxTiles;
  }
  TileTarget target(std::size_t tile) const {
    return {tile * TileLanes, smaller(TileLanes, window.lanes - tile * TileLanes)};
  }
  void run(std::size_t row, std::size_t rows, std::size_t tile, std::size_t tiles, const Results& results) const {
    const std::size_t size = scalar_bytes(layout.type);
    const std::size_t first = layout.index(window.p_begin, window.lane_begin + tile * TileLanes) * size;
    const unsigned char* next = nullptr;
    if (row == 0 && coefficients.ahead != 0)  // tiles before this one have prefetched as many bytes as they read
      next = static_cast<const unsigned char*>(block) + layout.index(window.p_begin, window.lane_begin) * size +
             coefficients.ahead + tile * TileLanes * window.p_count * size;
    functions(rows, tiles)({static_cast<const unsigned char*>(block) + first, layout.p_stride, layout.tile_stride,
                            window.p_count, coefficients.data + row * coefficients.stride, coefficients.stride, results,
                            next});
  }
};

/// Converts a window to floats: row p of the target holds the window's lanes, in whole tiles.
template <Scalar Type>
inline void widen(const DenseLayout& layout, const void* block, const Window& window, float* target,
                  std::size_t target_stride) {
  const auto* first = static_cast<const typename StoredAs<Type>::Element*>(block);
  for (std::size_t lane = 0; lane < window.lanes; lane += TileLanes) {
    const auto* x = first + layout.index(window.p_begin, window.lane_begin + lane);
    float* to = target + lane;
    for (std::size_t p = 0; p < window.p_count; ++p, x += layout.p_stride, to += target_stride) {
      KVC_UNROLL
      for (std::size_t i = 0; i < TileLanes; i += Width) store(to + i, load_as<Type>(x + i));
    }
  }
}

/// From this many rows on, elements of 16 bits become floats once for all rows rather than once per block of rows. With
/// AVX-512 a conversion of 16 halves takes as many slots of the multiply-add units as two of the six products it serves.
inline constexpr std::size_t WidenRows = 3 * MaxRows;
inline constexpr std::size_t WidenedSteps = 128;  // p at a time: with the widest block, two thirds of the nearest cache

/// Piece after piece of the window, each through memory that stays in the nearest cache. Results wait in memory between
/// pieces of p, so they are the same bits.
inline void widened_product(const DenseLayout& layout, const void* block, const Window& window,
                            const Coefficients& coefficients, const Results& results) {
  constexpr std::size_t Lanes = tiles_of_block(rows_of_block(0), 0) * TileLanes;
  alignas(LineBytes) float floats[Lanes * WidenedSteps];
  const DenseLayout widened{Scalar::f32, Lanes, TileLanes};
  for (std::size_t lane = 0; lane < window.lanes; lane += Lanes) {
    const std::size_t lanes = smaller(Lanes, window.lanes - lane);
    for (std::size_t p = 0; p < window.p_count; p += WidenedSteps) {
      const std::size_t steps = smaller(WidenedSteps, window.p_count - p);
      const Window piece{window.lane_begin + lane, lanes, window.p_begin + p, steps};
      if (layout.type == Scalar::f16)
        widen<Scalar::f16>(layout, block, piece, floats, Lanes);
      else
        widen<Scalar::bf16>(layout, block, piece, floats, Lanes);
      Coefficients part = coefficients;
      part.data += p;
      const Window whole{0, lanes, 0, steps};
      DenseKernel kernel{widened, floats, whole, part, DenseBlocks<Scalar::f32>};
      run_product(kernel, part.rows, {results.data + lane, results.stride, results.add || p != 0});
    }
  }
}

/// Up to this many rows, halves are converted faster by the narrower target (AVX-512 on Zen 4 converts 16 halves in two
/// cycles, 8 in half a cycle: 27 against 44 GMAC/s at one row, 47 against 55 at three). The results are the same bits.
inline constexpr std::size_t NarrowHalfRows = 3;

inline void dense_product(const DenseLayout& layout, const void* block, const Window& window,
                          const Coefficients& coefficients, const Results& results) {
  if constexpr (HasNarrowerTarget) {
    if (layout.type == Scalar::f16 && coefficients.rows <= NarrowHalfRows)
      return narrower::dense_product(layout, block, window, coefficients, results);
  }
  if (layout.type != Scalar::f32 && coefficients.rows >= WidenRows && coefficients.ahead == 0 && window.p_count != 0)
    return widened_product(layout, block, window, coefficients, results);
  const auto& functions = layout.type == Scalar::f32   ? DenseBlocks<Scalar::f32>
                          : layout.type == Scalar::f16 ? DenseBlocks<Scalar::f16>
                                                       : DenseBlocks<Scalar::bf16>;
  DenseKernel kernel{layout, block, window, coefficients, functions};
  run_product(kernel, coefficients.rows, results);
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
