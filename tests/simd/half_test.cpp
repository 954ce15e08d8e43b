#include "catch_shim.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kvc/half.hpp"
#include "kvc/kernels/dispatch.hpp"
#include "support/oracle.hpp"

using namespace oracle;

namespace {

constexpr std::size_t Count = 1 << 16;

/// Floats around every boundary between two halves: each half, the midpoint to the next one and its neighbours.
std::vector<float> floats_around_halves() {
  std::vector<float> floats;
  for (std::uint32_t half = 0; half < 0x7c00; ++half) {
    const float low = kvc::from_half(static_cast<std::uint16_t>(half));
    const float high = half == 0x7bff ? 65536.0f : kvc::from_half(static_cast<std::uint16_t>(half + 1));
    const float middle = low + (high - low) / 2;
    for (float x : {low, std::nextafter(middle, 0.0f), middle, std::nextafter(middle, Infinity)}) {
      floats.push_back(x);
      floats.push_back(-x);
    }
  }
  for (float x : {Infinity, -Infinity, 1e30f, -1e30f, 1e-30f, 0x1p-149f, -0.0f}) floats.push_back(x);
  return floats;
}

std::uint16_t half_bits(const std::vector<unsigned char>& block, std::size_t index) {
  std::uint16_t bits;
  std::memcpy(&bits, block.data() + 2 * index, 2);
  return bits;
}

}  // namespace

TEST_CASE("every finite half and infinity survives the way to float and back") {
  std::size_t changed = 0;
  for (std::uint32_t half = 0; half < Count; ++half) {
    const auto bits = static_cast<std::uint16_t>(half);
    if (!std::isnan(kvc::from_half(bits))) changed += kvc::to_half(kvc::from_half(bits)) != bits;
  }
  CHECK(changed == 0);
}

TEST_CASE("a half has the value that IEEE 754 defines") {
  CHECK(kvc::from_half(0x3c00) == 1.0f);
  CHECK(kvc::from_half(0xc000) == -2.0f);
  CHECK(kvc::from_half(0x7bff) == 65504.0f);
  CHECK(kvc::from_half(0x0400) == 0x1p-14f);
  CHECK(kvc::from_half(0x0001) == 0x1p-24f);
  CHECK(kvc::from_half(0x7c00) == Infinity);
  CHECK(std::isnan(kvc::from_half(0x7e00)));
}

TEST_CASE("rounding to half goes to the nearest, ties to even") {
  CHECK(kvc::to_half(1.0f + 0x1p-11f) == 0x3c00);
  CHECK(kvc::to_half(1.0f + 0x3p-11f) == 0x3c02);
  CHECK(kvc::to_half(65519.0f) == 0x7bff);
  CHECK(kvc::to_half(65520.0f) == 0x7c00);
  CHECK(kvc::to_half(0x1p-25f) == 0x0000);
  CHECK(kvc::to_half(std::nextafter(0x1p-25f, 1.0f)) == 0x0001);
}

TEST_CASE("all 65536 halves decode to the same floats at every level") {
  std::vector<std::uint16_t> halves(Count);
  for (std::size_t i = 0; i < Count; ++i) halves[i] = static_cast<std::uint16_t>(i);
  at_every_isa([&](kvc::Isa isa) {
    std::vector<float> floats(Count);
    active().dense_decode(DenseLayout::of_values(Scalar::f16, Count), halves.data(), {0, Count, 0, 1},
                          {floats.data(), Count, 1});
    std::size_t different = 0;
    for (std::size_t i = 0; i < Count; ++i) {
      const float expected = kvc::from_half(halves[i]);
      different += std::isnan(expected)
                       ? !std::isnan(floats[i])
                       : std::bit_cast<std::uint32_t>(floats[i]) != std::bit_cast<std::uint32_t>(expected);
    }
    INFO(kvc::to_string(isa));
    CHECK(different == 0);
  });
}

TEST_CASE("floats around every rounding boundary encode to the same halves and bfloats at every level") {
  const std::vector<float> floats = floats_around_halves();
  for (Scalar type : {Scalar::f16, Scalar::bf16}) {
    at_every_isa([&](kvc::Isa isa) {
      std::vector<unsigned char> block(2 * kvc::round_up(floats.size(), kvc::TileLanes));
      active().dense_encode(DenseLayout::of_values(type, floats.size()), block.data(), {0, floats.size(), 0, 1},
                            {floats.data(), floats.size(), 1});
      std::size_t different = 0;
      for (std::size_t i = 0; i < floats.size(); ++i)
        different += half_bits(block, i) != (type == Scalar::f16 ? kvc::to_half(floats[i]) : kvc::to_bfloat(floats[i]));
      INFO(kvc::to_string(isa) << (type == Scalar::f16 ? " f16" : " bf16"));
      CHECK(different == 0);
    });
  }
}

TEST_CASE("NaN stays NaN in every element type") {
  const std::vector<float> floats(kvc::TileLanes, NotANumber);
  for (Scalar type : {Scalar::f32, Scalar::f16, Scalar::bf16}) {
    at_every_isa([&](kvc::Isa isa) {
      std::vector<unsigned char> block(kvc::TileLanes * 4);
      active().dense_encode(DenseLayout::of_values(type, kvc::TileLanes), block.data(), {0, kvc::TileLanes, 0, 1},
                            {floats.data(), kvc::TileLanes, 1});
      INFO(kvc::to_string(isa));
      CHECK(std::isnan(read_scalar(type, block.data(), 3)));
    });
  }
}
