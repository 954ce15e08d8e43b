// Tiles of AMX int8, on top of the facade of AVX-512 VNNI. Re-included, no guard.
//
//   sums [row and part][16 lanes] += coefficients [row and part][16 dwords of 4 depths] × codes [16 dwords of 4 depths][16 lanes]
//
// Tiles 0 and 1 are sums; 4 and 5 coefficients and codes of 16 dwords, 6 and 7 of 8.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

using namespace avx512vnni;  // everything else

inline constexpr std::size_t TileDwords = 16;  // depths of a tile of codes, in fours

// Assembly rather than the intrinsics: those of g++ 12 do not say what memory they read and write.

/// Shapes the tiles for so many rows and parts of coefficients; they keep their shapes until release_tiles().
inline void shape_tiles(std::size_t rows) {
  struct alignas(64) Config {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes_of_row[16] = {};
    std::uint8_t rows[16] = {};
  } config;
  auto shape = [&](std::size_t tile, std::size_t height, std::size_t bytes) {
    config.rows[tile] = static_cast<std::uint8_t>(height);
    config.bytes_of_row[tile] = static_cast<std::uint16_t>(bytes);
  };
  for (const std::size_t tile : {0u, 1u, 4u}) shape(tile, rows, 64);
  shape(5, TileDwords, 64);
  shape(6, rows, 32);
  shape(7, TileDwords / 2, 64);
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
/// Tiles in use make every context switch save 8 KiB.
inline void release_tiles() {
  __asm__ volatile("tilerelease");
}

template <int Tile>
KVC_ALWAYS_INLINE void clear_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
/// Loads rows `Stride` bytes apart, of which the compiler knows that they read `Bytes` in all.
template <int Tile, std::size_t Stride, std::size_t Bytes>
KVC_ALWAYS_INLINE void load_tile(const std::uint32_t* first) {
  using Memory = const std::uint32_t[Bytes / 4];
  __asm__ volatile("tileloadd (%0, %1, 1), %%tmm%c2"
                   :
                   : "r"(first), "r"(Stride), "i"(Tile), "m"(*reinterpret_cast<Memory*>(first)));
}
/// sums += coefficients × codes.
template <int Sums, int Coefficients, int Codes, bool Unsigned>
KVC_ALWAYS_INLINE void multiply_tiles() {
  if constexpr (Unsigned)
    __asm__ volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Coefficients), "i"(Codes));
  else
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Coefficients), "i"(Codes));
}
/// Rows 64 bytes apart.
template <int Tile, std::size_t Bytes>
KVC_ALWAYS_INLINE void store_tile(std::uint32_t* first) {
  using Memory = std::uint32_t[Bytes / 4];
  __asm__ volatile("tilestored %%tmm%c3, (%1, %2, 1)"
                   : "=m"(*reinterpret_cast<Memory*>(first))
                   : "r"(first), "r"(std::size_t{64}), "i"(Tile));
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
