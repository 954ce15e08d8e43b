// How a product is cut into blocks of rows × tiles whose accumulators fit into the registers. Re-included, no guard.
//
//                 tile 0 … T-1 | tile T … 2T-1 | …
//   row 0 … R-1   one block    |
//   row R … 2R-1               |
//
// Each block walks p once from first to last, with one accumulator per result, so the cut never changes a result.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

inline constexpr std::size_t TileVectors = TileLanes / Width;
inline constexpr std::size_t MaxTiles = 4;

constexpr std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

inline constexpr std::size_t LineBytes = 64;  // of the caches

/// Into the second level: what is read a chunk later. Volatile, for where it stands among the loads matters: g++ would gather
/// neighbours.
KVC_ALWAYS_INLINE void prefetch(const void* p) {
#if defined(__x86_64__)
  __asm__ volatile("prefetcht1 %0" : : "m"(*static_cast<const unsigned char*>(p)));
#else
  __builtin_prefetch(p, 0, 2);
#endif
}
/// Into the first level, of a run of lines that is being read: those a kilobyte on.
KVC_ALWAYS_INLINE void prefetch_near(const void* p) {
  __builtin_prefetch(static_cast<const unsigned char*>(p) + 1024, 0, 3);
}

/// Where the results of one tile go: columns [offset, offset + width).
struct TileTarget {
  std::size_t offset, width;
};

/// Whether a block's accumulators, its `held` further vectors per tile and the broadcast coefficients fit.
constexpr bool fits_registers(std::size_t rows, std::size_t tiles, std::size_t held_per_tile) {
  const std::size_t vectors = tiles * TileVectors;
  return rows * vectors + held_per_tile * vectors + smaller(rows, vectors) + 1 + held_per_tile <= Registers;
}
constexpr std::size_t tiles_of_block(std::size_t rows, std::size_t held_per_tile) {
  for (std::size_t tiles = MaxTiles; tiles > 1; tiles /= 2)
    if (fits_registers(rows, tiles, held_per_tile)) return tiles;
  return 1;
}
constexpr std::size_t rows_of_block(std::size_t held_per_tile) {
  for (std::size_t rows : {6u, 4u, 3u, 2u})
    if (fits_registers(rows, 1, held_per_tile)) return rows;
  return 1;
}

/// Rows of the next block: as many as fit, but two even blocks rather than a full one and a thin one.
constexpr std::size_t next_rows(std::size_t left, std::size_t most) {
  if (left >= 2 * most || left == most) return most;
  std::size_t rows = left > most || left == 5 ? (left + 1) / 2 : left;
  if (rows == 5) rows = 4;
  return smaller(rows, most);
}

/// Copies `rows` × the tiles' columns between results and a block of whole tiles, `stride` floats apart.
inline void gather_results(const Results& results, std::size_t row, std::size_t rows, const TileTarget* tiles,
                           std::size_t count, float* block) {
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t t = 0; t < count; ++t)
      for (std::size_t i = 0; i < TileLanes; ++i)
        block[(r * count + t) * TileLanes + i] =
            i < tiles[t].width ? results.data[(row + r) * results.stride + tiles[t].offset + i] : 0.0f;
}
inline void scatter_results(const Results& results, std::size_t row, std::size_t rows, const TileTarget* tiles,
                            std::size_t count, const float* block) {
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t t = 0; t < count; ++t)
      for (std::size_t i = 0; i < tiles[t].width; ++i)
        results.data[(row + r) * results.stride + tiles[t].offset + i] = block[(r * count + t) * TileLanes + i];
}

/// Row 0 of a table of block functions serves 1 tile, row 1 two, row 2 four; columns are rows of the block.
inline constexpr std::size_t MaxRows = 6;
template <class Function>
struct BlockFunctions {
  Function of[3][MaxRows + 1] = {};
  constexpr Function operator()(std::size_t rows, std::size_t tiles) const { return of[tiles / 2][rows]; }
};

/// Fills the table with Make::get<rows, tiles>() for every block that fits the registers.
template <class Function, class Make>
constexpr BlockFunctions<Function> make_block_functions() {
  BlockFunctions<Function> functions;
  auto fill = [&]<std::size_t Rows>() {
    if constexpr (Rows <= rows_of_block(Make::HeldPerTile)) {
      constexpr std::size_t Tiles = tiles_of_block(Rows, Make::HeldPerTile);
      functions.of[0][Rows] = Make::template get<Rows, 1>();
      if constexpr (Tiles >= 2) functions.of[1][Rows] = Make::template get<Rows, 2>();
      if constexpr (Tiles >= 4) functions.of[2][Rows] = Make::template get<Rows, 4>();
    }
  };
  fill.template operator()<1>();
  fill.template operator()<2>();
  fill.template operator()<3>();
  fill.template operator()<4>();
  fill.template operator()<6>();
  return functions;
}

/// One block. Whole tiles go straight to the results, others through a buffer: block functions only know whole tiles.
template <class Kernel>
inline void run_block(Kernel& kernel, std::size_t row, std::size_t rows, std::size_t tile, std::size_t tiles,
                      const Results& results) {
  TileTarget targets[MaxTiles];
  bool whole = true;
  for (std::size_t t = 0; t < tiles; ++t) {
    targets[t] = kernel.target(tile + t);
    whole = whole && targets[t].width == TileLanes;
  }
  if (whole) {
    float* target = results.data + row * results.stride + targets[0].offset;
    return kernel.run(row, rows, tile, tiles, {target, results.stride, results.add});
  }
  float block[MaxRows * MaxTiles * TileLanes];
  if (results.add) gather_results(results, row, rows, targets, tiles, block);
  kernel.run(row, rows, tile, tiles, {block, tiles * TileLanes, results.add});
  scatter_results(results, row, rows, targets, tiles, block);
}

/// All tiles of the row blocks in [row, end).
template <class Kernel>
inline void run_row_blocks(Kernel& kernel, std::size_t row, std::size_t end, std::size_t rows, const Results& results) {
  const std::size_t most = smaller(tiles_of_block(rows, Kernel::HeldPerTile), kernel.most_tiles());
  const std::size_t tiles = kernel.tiles();
  auto block_tiles = [&](std::size_t tile) {
    std::size_t width = most;
    while (width > tiles - tile) width /= 2;
    return width;
  };
  if constexpr (Kernel::PreparesRows) {
    for (; row < end; row += rows) {
      kernel.prepare(row, rows);
      for (std::size_t tile = 0, width = 0; tile < tiles; tile += width) {
        width = block_tiles(tile);
        run_block(kernel, row, rows, tile, width, results);
      }
    }
  } else {  // the tiles' elements stay in the first-level cache while all rows pass
    for (std::size_t tile = 0, width = 0; tile < tiles; tile += width) {
      width = block_tiles(tile);
      for (std::size_t r = row; r < end; r += rows) run_block(kernel, r, rows, tile, width, results);
    }
  }
}

/// All rows and tiles of a product.
template <class Kernel>
inline void run_product(Kernel& kernel, std::size_t rows, const Results& results) {
  constexpr std::size_t Most = rows_of_block(Kernel::HeldPerTile);
  for (std::size_t row = 0, end = 0; row < rows; row = end) {
    const std::size_t block = next_rows(rows - row, Most);
    // The last full block stays with the remainder, which next_rows() cuts evenly.
    const std::size_t blocks = rows - row >= 2 * Most ? (rows - row) / Most - 1 : 1;
    end = row + blocks * block;
    run_row_blocks(kernel, row, end, block, results);
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
