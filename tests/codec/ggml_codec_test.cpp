// The block types of ggml. That every byte is ggml's own is proved by its recorded blocks (golden/quant).
#include "catch_shim.hpp"

#include <array>
#include <cmath>
#include <cstring>

#include "kvc/codec/ggml.hpp"
#include "support/oracle.hpp"

using namespace kvc;

namespace {

constexpr std::array Types{GgmlType::q4_0, GgmlType::q4_1,   GgmlType::q5_0,  GgmlType::q5_1,
                           GgmlType::q8_0, GgmlType::iq4_nl, GgmlType::mxfp4, GgmlType::nvfp4};

std::vector<unsigned char> encoded(GgmlType type, const std::vector<float>& row) {
  const GgmlCodec codec({type}, row.size());
  std::vector<unsigned char> bytes(codec.block_bytes(1));
  codec.encode({row.data(), 1, row.size()}, reinterpret_cast<std::byte*>(bytes.data()), 1, 0);
  return bytes;
}
std::vector<float> read_back(GgmlType type, const std::vector<float>& row) {
  const std::vector<unsigned char> bytes = encoded(type, row);
  std::vector<float> read(row.size());
  GgmlCodec({type}, row.size())
      .decode(reinterpret_cast<const std::byte*>(bytes.data()), 1, 0, {read.data(), 1, read.size()});
  return read;
}

/// What a block of each type can hold without error, in units of its scale.
std::vector<float> exact_values(GgmlType type) {
  switch (type) {
    case GgmlType::q4_0:
      return {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    case GgmlType::q5_0:
      return {-16, -15, -9, -8, -2, -1, 0, 1, 2, 7, 8, 14, 15};
    case GgmlType::q4_1:
      return {3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18};
    case GgmlType::q5_1:
      return {-3, -2, -1, 0, 1, 12, 13, 14, 26, 27, 28};
    case GgmlType::q8_0:
      return {127, -127, -100, -1, 0, 1, 2, 77, 126};
    case GgmlType::iq4_nl:
      return {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    default:
      return {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6};
  }
}

/// The largest error of a block's elements, relative to the largest magnitude (types with a minimum: to the range).
double worst_error(GgmlType type) {
  constexpr double Half = 1.0 / 1024;  // fp16 scales
  switch (type) {
    case GgmlType::q4_0:
      return 1.0 / 8 + Half;  // the largest is -8 steps, its opposite at most 7
    case GgmlType::q5_0:
      return 1.0 / 16 + Half;
    case GgmlType::q4_1:
      return 0.5 / 15 + Half;
    case GgmlType::q5_1:
      return 0.5 / 31 + Half;
    case GgmlType::q8_0:
      return 0.5 / 127 + Half;
    case GgmlType::iq4_nl:
      return 14.0 / 113;  // 113 levels for what may be 127, and the best scale moves the others
    case GgmlType::mxfp4:
      return 1.0 / 4;  // what lies above 6 units of a largest magnitude below 8
    default:
      return 1.0 / 6 + 1.0 / 16;  // half of the gap from 4 to 6, and a scale of 3 bits
  }
}

}  // namespace

TEST_CASE("Blocks hold their own levels without error, at any scale that is a power of two") {
  for (const GgmlType type : Types)
    for (const float unit : {1.0f, 0.125f, 16.0f}) {
      const std::vector<float> levels = exact_values(type);
      std::vector<float> row(128);
      for (std::size_t i = 0; i < row.size(); ++i) row[i] = levels[i % levels.size()] * unit;
      INFO(block_size(type).name << ", unit " << unit);
      CHECK(read_back(type, row) == row);
    }
}

TEST_CASE("Elements j and j + 16 share a byte, the first in the low nibble") {
  std::vector<float> row(32, 0.0f);
  row[0] = -8;  // the largest: scale 1, code 0
  row[1] = 3;   // code 11
  row[17] = 5;  // code 13
  const std::vector<unsigned char> bytes = encoded(GgmlType::q4_0, row);
  CHECK(bytes == std::vector<unsigned char>{0x00, 0x3c, 0x80, 0xdb, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88,
                                            0x88, 0x88, 0x88, 0x88, 0x88, 0x88});
}

TEST_CASE("Fifth bits follow the scale in the order of the elements") {
  std::vector<float> row(32, -1.0f);  // code 15: no fifth bit
  row[0] = -16;
  row[9] = row[31] = 15;  // code 31
  const std::vector<unsigned char> bytes = encoded(GgmlType::q5_0, row);
  std::uint32_t fifth = 0;
  std::memcpy(&fifth, bytes.data() + 2, sizeof fifth);
  CHECK(fifth == (1u << 9 | 1u << 31));
}

TEST_CASE("The scale of q4_0 has the opposite sign of the largest element") {
  std::vector<float> row(32, 0.0f);
  row[5] = 4;
  const std::vector<unsigned char> bytes = encoded(GgmlType::q4_0, row);
  CHECK(bytes[1] == 0xb8);  // -0.5 in fp16
  CHECK(read_back(GgmlType::q4_0, row) == row);
}

TEST_CASE("q8_0 rounds halves away from zero") {
  std::vector<float> row(32, 0.0f);
  row[0] = 127;
  row[1] = 2.5f;
  row[2] = -2.5f;
  row[3] = std::nextafter(0.5f, 0.0f);
  const std::vector<float> read = read_back(GgmlType::q8_0, row);
  CHECK(read[1] == 3);
  CHECK(read[2] == -3);
  CHECK(read[3] == 0);
}

TEST_CASE("Random rows read back within the error of their type") {
  for (const GgmlType type : Types) {
    const std::vector<float> row = oracle::normal_floats(64 * 200, 5, 0.5f);
    const std::vector<float> read = read_back(type, row);
    const std::size_t size = type == GgmlType::nvfp4 ? 16 : 32;
    double worst = 0;
    for (std::size_t begin = 0; begin < row.size(); begin += size) {
      double low = HUGE_VAL, high = -HUGE_VAL, error = 0;
      for (std::size_t i = begin; i < begin + size; ++i) {
        low = std::min(low, double(row[i]));
        high = std::max(high, double(row[i]));
        error = std::max(error, std::fabs(double(row[i]) - double(read[i])));
      }
      const bool ranged = type == GgmlType::q4_1 || type == GgmlType::q5_1;
      worst = std::max(worst, error / (ranged ? high - low : std::max(high, -low)) / worst_error(type));
    }
    INFO(block_size(type).name);
    CHECK(worst <= 1);
    CHECK(worst > 0.3);  // the bound is not far off
  }
}

TEST_CASE("Rows of zeros read back as zeros, and their bytes depend on nothing else") {
  for (const GgmlType type : Types) {
    INFO(block_size(type).name);
    const std::vector<float> zeros(64, 0.0f);
    CHECK(read_back(type, zeros) == zeros);
    std::vector<float> longer = oracle::normal_floats(128, 6);
    std::fill(longer.begin() + 64, longer.end(), 0.0f);
    const std::vector<unsigned char> alone = encoded(type, zeros), behind = encoded(type, longer);
    CHECK(std::vector(behind.begin() + std::ptrdiff_t(alone.size()), behind.end()) == alone);
  }
}

TEST_CASE("Rows of one value read back nearly as that value, and those with a minimum exactly") {
  for (const GgmlType type : Types)
    for (const float value : {1.25f, -3.0f}) {
      INFO(block_size(type).name << ", " << value);
      const std::vector<float> read = read_back(type, std::vector<float>(64, value));
      const bool exact = type == GgmlType::q4_1 || type == GgmlType::q5_1;
      double worst = 0;
      for (const float x : read) worst = std::max(worst, std::fabs(double(x) / double(value) - 1));
      CHECK(worst <= (exact ? 0 : worst_error(type)));
    }
}

TEST_CASE("A NaN spoils its own element only") {
  for (const GgmlType type : Types)
    for (const std::size_t place : {0u, 21u}) {
      INFO(block_size(type).name << ", element " << place);
      std::vector<float> row = oracle::normal_floats(64, 7);
      row[place] = 0.01f;  // neither end of its block
      std::vector<float> expected = read_back(type, row);
      row[place] = oracle::NotANumber;
      std::vector<float> read = read_back(type, row);
      CHECK(std::isfinite(read[place]));
      read[place] = expected[place] = 0;
      // The best scale of iq4_nl does depend on every element.
      if (type != GgmlType::iq4_nl) CHECK(read == expected);
    }
}

TEST_CASE("Numbers beyond the range of scales saturate without undefined behaviour") {
  for (const GgmlType type : Types)
    for (const float value : {1e-45f, 1e-30f, 1e30f, oracle::Infinity}) {
      INFO(block_size(type).name << ", " << value);
      std::vector<float> row = oracle::normal_floats(64, 8);
      for (float& x : row) x = x < 0 ? -value : value;
      row[3] = 0;
      CHECK(encoded(type, row).size() == 64 / block_size(type).elements * block_size(type).bytes);
      if (value < 1e-20f && type != GgmlType::mxfp4) CHECK(read_back(type, row) == std::vector<float>(64, 0.0f));
    }
}

TEST_CASE("Rows lie one after another, whatever the steps in which they are encoded") {
  constexpr std::size_t Rows = 50, Dim = 192;
  for (const GgmlType type : Types)
    for (const Role role : {Role::key, Role::value}) {
      INFO(block_size(type).name);
      const auto codec = make_codec(GgmlBlocks{type}, role, Dim);
      CHECK(codec->granule() == 1);
      CHECK(codec->range_granule() == 1);
      const std::vector<float> rows = oracle::normal_floats(Rows * Dim, 9);
      const std::size_t row_bytes = Dim / block_size(type).elements * block_size(type).bytes;
      CHECK(codec->block_bytes(Rows) == Rows * row_bytes);
      std::vector<std::byte> whole(Rows * row_bytes), steps(Rows * row_bytes);
      codec->encode({rows.data(), Rows, Dim}, whole.data(), Rows, 0);
      for (std::size_t r = 0; r < Rows; ++r) codec->encode({rows.data() + r * Dim, 1, Dim}, steps.data(), Rows, r);
      CHECK(whole == steps);
      const std::vector<unsigned char> third = encoded(type, {rows.begin() + 3 * Dim, rows.begin() + 4 * Dim});
      CHECK(std::memcmp(whole.data() + 3 * row_bytes, third.data(), row_bytes) == 0);
    }
}

TEST_CASE("Strided rows are read and written in place") {
  constexpr std::size_t Dim = 64, Stride = 70;
  const GgmlCodec codec({GgmlType::q8_0}, Dim);
  const std::vector<float> from = oracle::normal_floats(3 * Stride, 10);
  std::vector<std::byte> block(codec.block_bytes(3));
  codec.encode({from.data(), 3, Dim, Stride}, block.data(), 3, 0);
  std::vector<float> to(3 * Stride, 9.0f);
  codec.decode(block.data(), 3, 0, {to.data(), 3, Dim, Stride});
  for (std::size_t r = 0; r < 3; ++r) {
    CHECK(std::vector(to.begin() + std::ptrdiff_t(r * Stride), to.begin() + std::ptrdiff_t(r * Stride + Dim)) ==
          read_back(GgmlType::q8_0,
                    {from.begin() + std::ptrdiff_t(r * Stride), from.begin() + std::ptrdiff_t(r * Stride + Dim)}));
    CHECK(to[r * Stride + Dim] == 9.0f);
  }
}

TEST_CASE("Rows that are not whole blocks are refused") {
  const auto message = [](GgmlType type, std::size_t dim) {
    try {
      make_codec(GgmlBlocks{type}, Role::key, dim);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::invalid_argument);
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  CHECK(message(GgmlType::q4_0, 80) == "GgmlBlocks: blocks of q4_0 (32 channels) must divide the head dimension (80)");
  CHECK(message(GgmlType::nvfp4, 96) ==
        "GgmlBlocks: blocks of nvfp4 (64 channels) must divide the head dimension (96)");
  CHECK(message(GgmlType::mxfp4, 0) != "nothing");
  CHECK(message(GgmlType::nvfp4, 128) == "nothing");
  CHECK(make_codec(GgmlBlocks{GgmlType::iq4_nl}, Role::key, 64)->name() == "ggml-iq4_nl");
}
