// AVX-512 without VNNI multiplies integers as AVX2 does. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

using avx2_integer::integer_functions;
using avx2_integer::integer_product;
using avx512::packed_product;
inline constexpr const Table& KernelTableBelow = avx512::KernelTable;
inline constexpr const char* LevelName = "avx512";

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
