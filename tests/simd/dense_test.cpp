#include "catch_shim.hpp"

#include <vector>

#include "kvc/kernels/dispatch.hpp"
#include "support/oracle.hpp"

using namespace oracle;

namespace {

constexpr std::size_t AllRows[] = {1, 2, 3, 4, 7, 8, 9, 16, 64};
constexpr std::size_t AllLanes[] = {1, 7, 8, 15, 16, 17, 31, 32, 33, 64, 80, 96, 100, 128};
constexpr std::size_t AllSteps[] = {8, 16, 64, 80, 96, 128, 257};
constexpr float Sentinel = 12345.0f;

/// A block of `lanes` × `steps` normal numbers and its layout.
struct Block {
  DenseLayout layout;
  std::size_t lanes, steps;
  std::vector<unsigned char> bytes;

  Block(Scalar type, bool values, std::size_t lane_count, std::size_t step_count)
      : layout(values ? DenseLayout::of_values(type, lane_count) : DenseLayout::of_keys(type, step_count)),
        lanes(lane_count),
        steps(step_count),
        bytes(kvc::round_up(lane_count, kvc::TileLanes) * step_count * kvc::scalar_bytes(type)) {
    const std::vector<float> source = normal_floats(lanes * steps, 1);
    table(kvc::Isa::portable).dense_encode(layout, bytes.data(), {0, lanes, 0, steps}, {source.data(), lanes, 1});
  }
  float operator()(std::size_t p, std::size_t lane) const { return dense_element(layout, bytes.data(), p, lane); }
};

std::vector<float> product(const Block& block, const Area& area, const std::vector<float>& coefficients,
                           std::size_t rows, bool add = false) {
  std::vector<float> results(rows * area.lanes, add ? 1.0f : NotANumber);
  active().dense_product(block.layout, block.bytes.data(), area, {coefficients.data(), rows, area.depth_count},
                         {results.data(), area.lanes, add});
  return results;
}

/// Checks one product at every level. Each result is depth_count fused (portable: separate) multiplications and additions
/// in sequence, so its error is below (depth_count + 2) units of the sum of the terms' magnitudes.
void check_product(const Block& block, const Area& area, std::size_t rows, bool add) {
  const std::vector<float> coefficients = normal_floats(rows * area.depth_count, 2);
  std::vector<Sum> sums(rows * area.lanes);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t lane = 0; lane < area.lanes; ++lane) {
      Sum& sum = sums[r * area.lanes + lane];
      if (add) sum.add(1.0);
      for (std::size_t p = 0; p < area.depth_count; ++p)
        sum.add(double(coefficients[r * area.depth_count + p]) * block(area.depth_begin + p, area.lane_begin + lane));
    }
  }
  at_every_isa([&](kvc::Isa isa) {
    const std::vector<float> results = product(block, area, coefficients, rows, add);
    Worst worst;
    for (std::size_t i = 0; i < results.size(); ++i)
      worst.add(results[i], sums[i].value, double(area.depth_count + 2) * Unit * sums[i].magnitude);
    INFO(kvc::to_string(isa) << ": rows " << rows << ", lanes " << area.lanes << ", p " << area.depth_count);
    CHECK(worst.value() <= 1);
  });
}

}  // namespace

TEST_CASE("dense_product of f32 keys equals the sum of products at every size") {
  for (std::size_t steps : AllSteps)
    for (std::size_t lanes : AllLanes) {
      const Block block(Scalar::f32, false, lanes, steps);
      for (std::size_t rows : AllRows)
        if (rows * lanes * steps <= 64 * 128 * 64) check_product(block, {0, lanes, 0, steps}, rows, false);
    }
}

TEST_CASE("dense_product serves every element type in both layouts, replacing and adding") {
  for (Scalar type : {Scalar::f32, Scalar::f16, Scalar::bf16})
    for (bool values : {false, true})
      for (std::size_t lanes : {7u, 16u, 33u, 80u, 128u})
        for (std::size_t steps : {8u, 80u}) {
          const Block block(type, values, lanes, steps);
          for (std::size_t rows : AllRows) check_product(block, {0, lanes, 0, steps}, rows, rows % 2 == 0);
        }
}

TEST_CASE("dense_product of a area reads only that area") {
  for (bool values : {false, true}) {
    const Block block(Scalar::f16, values, 96, 64);
    check_product(block, {32, 40, 5, 50}, 3, false);
    check_product(block, {80, 16, 63, 1}, 9, true);
    check_product(block, {16, 80, 0, 0}, 2, true);
  }
}

TEST_CASE("dense_product over no p replaces by zero") {
  const Block block(Scalar::f16, false, 32, 16);
  at_every_isa([&](kvc::Isa isa) {
    INFO(kvc::to_string(isa));
    CHECK(product(block, {0, 20, 3, 0}, {}, 2) == std::vector<float>(40, 0.0f));
  });
}

TEST_CASE("dense_product writes exactly the area's lanes of each row") {
  const Block block(Scalar::f16, true, 48, 16);
  const std::vector<float> coefficients = normal_floats(5 * 16, 2);
  at_every_isa([&](kvc::Isa isa) {
    std::vector<float> results(5 * 64, Sentinel);
    active().dense_product(block.layout, block.bytes.data(), {0, 37, 0, 16}, {coefficients.data(), 5, 16},
                           {results.data(), 64, false});
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < results.size(); ++i) wrong += (results[i] == Sentinel) != (i % 64 >= 37);
    INFO(kvc::to_string(isa));
    CHECK(wrong == 0);
  });
}

TEST_CASE("dense_product gives the same bits however rows and lanes are split over calls") {
  const std::size_t lanes = 112, steps = 96;
  const std::vector<float> coefficients = normal_floats(13 * steps, 2);
  for (Scalar type : {Scalar::f32, Scalar::f16, Scalar::bf16}) {
    const Block block(type, false, lanes, steps);
    at_every_isa([&](kvc::Isa isa) {
      const std::vector<float> whole = product(block, {0, lanes, 0, steps}, coefficients, 13);
      std::size_t different = 0;
      for (std::size_t r = 0; r < 13; ++r)
        for (std::size_t begin : {0u, 16u, 48u, 96u}) {
          const std::vector<float> row(coefficients.begin() + std::ptrdiff_t(r * steps),
                                       coefficients.begin() + std::ptrdiff_t((r + 1) * steps));
          const std::vector<float> part = product(block, {begin, 16, 0, steps}, row, 1);
          for (std::size_t lane = 0; lane < 16; ++lane) different += part[lane] != whole[r * lanes + begin + lane];
        }
      INFO(kvc::to_string(isa));
      CHECK(different == 0);
    });
  }
}

TEST_CASE("a NaN or infinite element reaches exactly the results of its lane") {
  Block block(Scalar::f32, false, 32, 16);
  const std::size_t index = block.layout.index(3, 21);
  std::memcpy(block.bytes.data() + 4 * index, &NotANumber, 4);
  const std::vector<float> coefficients = normal_floats(4 * 16, 2);
  at_every_isa([&](kvc::Isa isa) {
    const std::vector<float> results = product(block, {0, 32, 0, 16}, coefficients, 4);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < results.size(); ++i) wrong += std::isnan(results[i]) != (i % 32 == 21);
    INFO(kvc::to_string(isa));
    CHECK(wrong == 0);
  });
}

TEST_CASE("dense_encode and dense_decode move any area between any strides") {
  const std::vector<float> source = normal_floats(100 * 40, 3);
  for (Scalar type : {Scalar::f32, Scalar::f16, Scalar::bf16})
    for (bool values : {false, true})
      for (bool lanes_follow : {false, true})
        for (const Area& area : {Area{0, 96, 0, 40}, Area{0, 100, 3, 33}, Area{37, 1, 0, 40},
                                     Area{5, 50, 7, 1}, Area{16, 80, 1, 17}})
          at_every_isa([&](kvc::Isa isa) {
            const DenseLayout layout = values ? DenseLayout::of_values(type, 100) : DenseLayout::of_keys(type, 40);
            std::vector<unsigned char> block(112 * 40 * kvc::scalar_bytes(type));
            const std::size_t depth_stride = lanes_follow ? 100 : 1, lane_stride = lanes_follow ? 1 : 40;
            active().dense_encode(layout, block.data(), area, {source.data(), depth_stride, lane_stride});
            std::vector<float> back(100 * 40, Sentinel);
            active().dense_decode(layout, block.data(), area, {back.data(), depth_stride, lane_stride});
            std::size_t wrong = 0;
            for (std::size_t p = 0; p < 40; ++p)
              for (std::size_t lane = 0; lane < 100; ++lane) {
                const bool inside = p >= area.depth_begin && p < area.depth_begin + area.depth_count &&
                                    lane >= area.lane_begin && lane < area.lane_begin + area.lanes;
                if (!inside) {
                  wrong += dense_element(layout, block.data(), p, lane) != 0;
                  continue;
                }
                const std::size_t at = (p - area.depth_begin) * depth_stride + (lane - area.lane_begin) * lane_stride;
                const float expected = rounded_to(type, source[at]);
                wrong += dense_element(layout, block.data(), p, lane) != expected || back[at] != expected;
              }
            INFO(kvc::to_string(isa) << ", lanes " << area.lanes << ", p " << area.depth_count);
            CHECK(wrong == 0);
          });
}
