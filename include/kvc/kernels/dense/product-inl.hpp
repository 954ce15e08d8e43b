// Products of unquantized blocks. Re-included, no guard.
//
//                 tile 0 … T-1 | tile T … 2T-1 | …
//   row 0 … R-1   one piece    |
//   row R … 2R-1               |
//
// A product is cut into pieces of rows × tiles whose accumulators fit into the registers. Each piece walks the depth once from
// first to last, with one accumulator per result, so the cut never changes a result.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline constexpr std::size_t TileVectors = TileLanes / Width;
inline constexpr std::size_t MaxTiles = 4, MaxRows = 6;

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

/// Whether the accumulators of rows × tiles, the broadcast coefficients or the elements, and one register more fit.
constexpr bool fits_registers(std::size_t rows, std::size_t tiles) {
  const std::size_t vectors = tiles * TileVectors;
  return rows * vectors + smaller(rows, vectors) + 1 <= Registers;
}
/// The most tiles of a piece of so many rows.
constexpr std::size_t tiles_of_piece(std::size_t rows) {
  for (std::size_t tiles = Specialised ? MaxTiles : 1; tiles > 1; tiles /= 2)
    if (fits_registers(rows, tiles)) return tiles;
  return 1;
}
/// Rows of the next piece out of those left: two even pieces rather than a full one and a thin one.
constexpr std::size_t rows_of_piece(std::size_t left) {
  if (!Specialised) return left >= 4 ? 4 : 1;
  if (left >= 2 * MaxRows || left == MaxRows) return MaxRows;
  const std::size_t rows = left > MaxRows || left == 5 ? (left + 1) / 2 : left;
  return rows == 5 ? 4 : rows;
}

/// One piece.
struct DensePiece {
  const void* first;  // element of the first tile at the area's first depth
  std::size_t depth_stride, tile_stride, depth_count;
  const float* coefficients;
  std::size_t coefficient_stride;
  Results results;
  const unsigned char* next;  // what to prefetch, as many bytes as the piece reads; null: nothing
};

template <Scalar Type, std::size_t Rows, std::size_t Tiles>
void dense_piece(const DensePiece& piece) {
  constexpr std::size_t Vectors = Tiles * TileVectors;
  constexpr std::size_t DepthBytes = Tiles * TileLanes * sizeof(typename StoredAs<Type>::Element);
  constexpr std::size_t DepthLines = divide_up(DepthBytes, LineBytes);
  const Results results = piece.results;
  Vector sum[Rows][Vectors];
  KVC_UNROLL
  for (std::size_t r = 0; r < Rows; ++r) {
    KVC_UNROLL
    for (std::size_t i = 0; i < Vectors; ++i)
      sum[r][i] = results.add ? load(results.data + r * results.stride + i * Width) : zero();
  }
  const float* coefficient = piece.coefficients;
  const std::size_t row_stride = piece.coefficient_stride;
  const std::size_t tile_stride = piece.tile_stride, depth_stride = piece.depth_stride;
  const auto* x = static_cast<const typename StoredAs<Type>::Element*>(piece.first);
  const unsigned char* next = piece.next;
  for (std::size_t d = 0; d < piece.depth_count; ++d, x += depth_stride, ++coefficient) {
    if (next) {  // as many lines as one depth reads, in the order of memory, whatever the order of the reads
      KVC_UNROLL
      for (std::size_t line = 0; line < DepthLines; ++line) prefetch(next + line * LineBytes);
      next += DepthBytes;
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

/// The functions of one element type: column 0 has those of 1 tile, column 1 of two, column 2 of four.
using DensePieceFunction = void (*)(const DensePiece&);
struct DensePieces {
  DensePieceFunction of[MaxRows + 1][3] = {};
};
template <Scalar Type>
constexpr DensePieces make_dense_pieces() {
  DensePieces pieces;
  auto fill = [&]<std::size_t Rows>() {
    constexpr std::size_t Tiles = tiles_of_piece(Rows);
    pieces.of[Rows][0] = dense_piece<Type, Rows, 1>;
    if constexpr (Tiles >= 2) pieces.of[Rows][1] = dense_piece<Type, Rows, 2>;
    if constexpr (Tiles >= 4) pieces.of[Rows][2] = dense_piece<Type, Rows, 4>;
  };
  fill.template operator()<1>();
  fill.template operator()<4>();
  if constexpr (Specialised) {
    fill.template operator()<2>();
    fill.template operator()<3>();
    fill.template operator()<6>();
  }
  return pieces;
}
template <Scalar Type>
inline constexpr DensePieces DensePiecesOf = make_dense_pieces<Type>();

struct DenseProduct {
  const DenseLayout& layout;
  const void* block;
  const Area& area;
  const Coefficients& coefficients;
  const Results& results;
  const DensePieces& pieces;

  /// All pieces. The elements of some tiles stay in the nearest cache while rows of one piece size pass.
  void run() const {
    const std::size_t tiles = divide_up(area.lanes, TileLanes);
    for (std::size_t row = 0, end = 0; row < coefficients.rows; row = end) {
      const std::size_t left = coefficients.rows - row, rows = rows_of_piece(left);
      // The last full piece stays with the remainder, which rows_of_piece() cuts evenly.
      end = row + (left >= 2 * MaxRows ? left / rows - 1 : 1) * rows;
      for (std::size_t tile = 0, width = 0; tile < tiles; tile += width) {
        width = most_tiles(rows);
        while (width > tiles - tile) width /= 2;
        for (std::size_t r = row; r < end; r += rows) run_piece(r, rows, tile, width);
      }
    }
  }

 private:
  /// While it prefetches, a piece takes a line's worth of each depth: bursts of prefetches fill the buffers that loads wait for.
  std::size_t most_tiles(std::size_t rows) const {
    const std::size_t most = tiles_of_piece(rows);
    return coefficients.ahead == 0 ? most : smaller(most, LineBytes / (TileLanes * scalar_bytes(layout.type)));
  }

  /// Whole tiles go straight to the results. Where the area ends inside the last tile, a buffer has room for its other lanes.
  void run_piece(std::size_t row, std::size_t rows, std::size_t tile, std::size_t tiles) const {
    const std::size_t lane = tile * TileLanes, lanes = tiles * TileLanes, width = smaller(lanes, area.lanes - lane);
    float* target = results.data + row * results.stride + lane;
    if (width == lanes) return call(row, rows, tile, tiles, {target, results.stride, results.add});
    float buffer[MaxRows * MaxTiles * TileLanes];
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t i = 0; i < lanes; ++i)
        buffer[r * lanes + i] = results.add && i < width ? target[r * results.stride + i] : 0.0f;
    call(row, rows, tile, tiles, {buffer, lanes, true});
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t i = 0; i < width; ++i) target[r * results.stride + i] = buffer[r * lanes + i];
  }

  void call(std::size_t row, std::size_t rows, std::size_t tile, std::size_t tiles, const Results& target) const {
    const std::size_t size = scalar_bytes(layout.type);
    const unsigned char* bytes = static_cast<const unsigned char*>(block);
    const unsigned char* next = nullptr;
    if (row == 0 && coefficients.ahead != 0)  // tiles before this one have prefetched as many bytes as they read
      next = bytes + layout.index(area.depth_begin, area.lane_begin) * size + coefficients.ahead +
             tile * TileLanes * area.depth_count * size;
    pieces.of[rows][tiles / 2]({bytes + layout.index(area.depth_begin, area.lane_begin + tile * TileLanes) * size,
                                layout.depth_stride, layout.tile_stride, area.depth_count,
                                coefficients.data + row * coefficients.stride, coefficients.stride, target, next});
  }
};

/// Where the floats of a staged product come from. `fill` writes an area of the block as floats, depth after depth, `stride`
/// floats apart, in whole tiles.
struct FloatSource {
  const void *layout, *block;
  void (*fill)(const FloatSource&, const Area&, float* floats, std::size_t stride);
};

/// Depths at a time of a staged product: with the widest piece, two thirds of the nearest cache.
inline constexpr std::size_t StagedDepth = 128;

/// A product whose elements become floats once for all rows, an area at a time, in memory that stays in the nearest cache.
/// Results wait in memory between areas, so they are the same bits as those of one pass.
inline void staged_product(const FloatSource& source, const Area& area, const Coefficients& coefficients,
                           const Results& results) {
  alignas(LineBytes) float floats[MaxTiles * TileLanes * StagedDepth];
  const std::size_t most = tiles_of_piece(rows_of_piece(coefficients.rows)) * TileLanes;
  const std::size_t step = smaller(StagedDepth, 4096 / most);
  const DenseLayout layout{Scalar::f32, most, TileLanes};
  for (std::size_t lane = 0; lane < area.lanes; lane += most) {
    const std::size_t lanes = smaller(most, area.lanes - lane);
    for (std::size_t d = 0; d == 0 || d < area.depth_count; d += step) {
      const std::size_t depths = smaller(step, area.depth_count - d);
      source.fill(source, {area.lane_begin + lane, lanes, area.depth_begin + d, depths}, floats, most);
      Coefficients part = coefficients;
      part.data += d;
      part.ahead = 0;
      const Area whole{0, lanes, 0, depths};
      const Results target{results.data + lane, results.stride, results.add || d != 0};
      DenseProduct{layout, floats, whole, part, target, DensePiecesOf<Scalar::f32>}.run();
    }
  }
}

template <Scalar Type>
void fill_from_dense(const FloatSource& source, const Area& area, float* floats, std::size_t stride) {
  const DenseLayout& layout = *static_cast<const DenseLayout*>(source.layout);
  const auto* first = static_cast<const typename StoredAs<Type>::Element*>(source.block);
  for (std::size_t lane = 0; lane < area.lanes; lane += TileLanes) {
    const auto* x = first + layout.index(area.depth_begin, area.lane_begin + lane);
    float* to = floats + lane;
    for (std::size_t d = 0; d < area.depth_count; ++d, x += layout.depth_stride, to += stride) {
      KVC_UNROLL
      for (std::size_t i = 0; i < TileLanes; i += Width) store(to + i, load_as<Type>(x + i));
    }
  }
}

/// From this many rows on, elements of 16 bits become floats once for all rows rather than once per piece. With AVX-512 a
/// conversion of 16 halves takes as many slots of the multiply-add units as two of the six products it serves.
inline constexpr std::size_t StagedRows = 3 * MaxRows;

/// Up to this many rows, halves are converted faster by the narrower target (AVX-512 on Zen 4 converts 16 halves in two
/// cycles, 8 in half a cycle: 27 against 44 GMAC/s at one row, 47 against 55 at three). The results are the same bits.
inline constexpr std::size_t NarrowHalfRows = 3;

inline void dense_product(const DenseLayout& layout, const void* block, const Area& area,
                          const Coefficients& coefficients, const Results& results) {
  if constexpr (HasNarrowerTarget) {
    if (layout.type == Scalar::f16 && coefficients.rows <= NarrowHalfRows)
      return narrower::dense_product(layout, block, area, coefficients, results);
  }
  const auto run = [&](const DensePieces& pieces) {
    DenseProduct{layout, block, area, coefficients, results, pieces}.run();
  };
  if (layout.type == Scalar::f32) return run(DensePiecesOf<Scalar::f32>);
  const bool half = layout.type == Scalar::f16;
  if constexpr (Specialised) {
    if (coefficients.rows < StagedRows || coefficients.ahead != 0)
      return run(half ? DensePiecesOf<Scalar::f16> : DensePiecesOf<Scalar::bf16>);
  }
  const FloatSource source{&layout, block, half ? fill_from_dense<Scalar::f16> : fill_from_dense<Scalar::bf16>};
  staged_product(source, area, coefficients, results);
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
