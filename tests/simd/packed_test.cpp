#include "catch_shim.hpp"

#include <vector>

#include "kvc/kernels/dispatch.hpp"
#include "support/oracle.hpp"

using namespace oracle;

namespace {

constexpr std::size_t AllGroups[] = {8, 16, 20, 32, 40, 64, 80, 128};
constexpr unsigned AllBits[] = {2, 3, 4, 8};
constexpr float Sentinel = 12345.0f;

/// A block encoded from normal numbers around 1, so that minima matter; `source` is [p][lane].
struct Block {
  PackedLayout layout;
  std::vector<float> source;
  std::vector<unsigned char> bytes;

  explicit Block(const PackedLayout& packed)
      : layout(packed), source(normal_floats(packed.lanes * packed.depth, 1, 1.0f)), bytes(packed.bytes()) {
    active_packed().encode(layout, bytes.data(), {0, layout.lanes, 0, layout.depth}, {source.data(), layout.lanes, 1});
  }
};

std::vector<PackedLayout> all_layouts(std::size_t lanes, std::size_t steps) {
  std::vector<PackedLayout> layouts;
  for (unsigned bits : AllBits)
    for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth})
      for (Scalar metadata : {Scalar::f16, Scalar::f32})
        for (std::size_t group : AllGroups) layouts.push_back({bits, along, group, lanes, steps, metadata});
  return layouts;
}

std::string description(const PackedLayout& layout, kvc::Isa isa) {
  return std::string(kvc::to_string(isa)) + ": " + std::to_string(layout.bits) + " bits, groups of " +
         std::to_string(layout.group) + (layout.along == GroupsAlong::lanes ? " along lanes, " : " along p, ") +
         std::to_string(layout.lanes) + " lanes, p " + std::to_string(layout.depth) +
         (layout.metadata == Scalar::f16 ? ", f16 metadata" : ", f32 metadata");
}

std::vector<float> product(const Block& block, const Area& area, const std::vector<float>& coefficients,
                           std::size_t rows, bool add = false) {
  std::vector<float> results(rows * area.lanes, add ? 1.0f : NotANumber);
  active_packed().product(block.layout, block.bytes.data(), area, {coefficients.data(), rows, area.depth_count},
                          {results.data(), area.lanes, add});
  return results;
}

/// Checks one product at every level. A term c (code scale + minimum) is rounded once when its scale is folded in, and
/// the code and minimum parts pass through at most depth_count additions each, plus one or two per group: the error is
/// below (2 depth_count + 16) units of the sum of the magnitudes of both parts.
void check_product(const PackedLayout& layout, const Area& area, std::size_t rows, bool add) {
  const Block block(layout);
  const std::vector<float> coefficients = normal_floats(rows * area.depth_count, 2);
  std::vector<PackedElement> elements;
  for (std::size_t p = 0; p < area.depth_count; ++p)
    for (std::size_t lane = 0; lane < area.lanes; ++lane)
      elements.push_back(packed_element(layout, block.bytes.data(), area.depth_begin + p, area.lane_begin + lane));
  std::vector<Sum> sums(rows * area.lanes);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t lane = 0; lane < area.lanes; ++lane) {
      Sum& sum = sums[r * area.lanes + lane];
      if (add) sum.add(1.0);
      for (std::size_t p = 0; p < area.depth_count; ++p) {
        const PackedElement& element = elements[p * area.lanes + lane];
        const double c = coefficients[r * area.depth_count + p];
        sum.add(c * element.code * element.scale);
        sum.add(c * element.minimum);
      }
    }
  at_every_isa([&](kvc::Isa isa) {
    const std::vector<float> results = product(block, area, coefficients, rows, add);
    Worst worst;
    for (std::size_t i = 0; i < results.size(); ++i)
      worst.add(results[i], sums[i].value, double(2 * area.depth_count + 16) * Unit * sums[i].magnitude);
    INFO(description(layout, isa) << ", rows " << rows << ", area lanes " << area.lanes << ", p "
                                  << area.depth_count);
    CHECK(worst.value() <= 1);
  });
}

}  // namespace

TEST_CASE("packed_encode writes the codes, scales and minima of the definition, bit for bit, at every level") {
  for (std::size_t lanes : {16u, 33u, 80u, 128u})
    for (std::size_t steps : {8u, 80u, 257u})
      for (const PackedLayout& layout : all_layouts(lanes, steps)) {
        const bool along_lanes = layout.along == GroupsAlong::lanes;
        const std::vector<float> source = Block(layout).source;
        std::vector<std::vector<unsigned char>> blocks;
        at_every_isa([&](kvc::Isa) { blocks.push_back(Block(layout).bytes); });
        std::size_t wrong = 0;
        const std::size_t elements = along_lanes ? lanes : steps, columns = along_lanes ? steps : lanes;
        for (std::size_t column = 0; column < columns; ++column)
          for (std::size_t begin = 0; begin < elements; begin += layout.group) {
            auto p_of = [&](std::size_t e) { return along_lanes ? column : begin + e; };
            auto lane_of = [&](std::size_t e) { return along_lanes ? begin + e : column; };
            std::vector<float> group;
            for (std::size_t e = 0; e < layout.group && begin + e < elements; ++e)
              group.push_back(source[p_of(e) * lanes + lane_of(e)]);
            const std::vector<PackedElement> expected = quantized_group(group, layout.bits, layout.metadata);
            for (std::size_t e = 0; e < group.size(); ++e) {
              const PackedElement got = packed_element(layout, blocks[0].data(), p_of(e), lane_of(e));
              wrong +=
                  got.code != expected[e].code || got.scale != expected[e].scale || got.minimum != expected[e].minimum;
            }
          }
        for (const auto& block : blocks) wrong += block != blocks[0];
        INFO(description(layout, kvc::Isa::portable));
        CHECK(wrong == 0);
      }
}

TEST_CASE(
    "an element in the middle between two codes gets the even one, and its neighbours the nearer, at every level") {
  for (unsigned bits : AllBits)
    for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth})
      for (const float unit : {1.0f, 3.1e-5f, 0.0f, 1e-33f, 3e-39f}) {
        const PackedLayout layout{bits, along, 32, 32, 64, Scalar::f32};
        const float levels = static_cast<float>((1u << bits) - 1);
        std::vector<float> source(32 * 64);
        for (std::size_t i = 0; i < source.size(); ++i) {
          const std::size_t element = along == GroupsAlong::lanes ? i % 32 : i / 32 % 32;
          const float middle = static_cast<float>(i * 7 % (1u << bits)) - 0.5f;
          const float near = std::nextafter(middle, i % 3 == 0 ? 1e9f : -1e9f);
          const float x = element == 0 ? 0 : element == 1 ? levels : i % 2 == 0 ? middle : near;
          source[i] = std::fmax(0.0f, x) * unit;
        }
        at_every_isa([&](kvc::Isa isa) {
          std::vector<unsigned char> bytes(layout.bytes());
          active_packed().encode(layout, bytes.data(), {0, 32, 0, 64}, {source.data(), 32, 1});
          std::size_t wrong = 0;
          for (std::size_t group = 0; group < 64; ++group) {
            std::vector<float> elements;
            const auto place = [&](std::size_t e) {
              return along == GroupsAlong::lanes ? std::pair(group, e) : std::pair(group / 32 * 32 + e, group % 32);
            };
            for (std::size_t e = 0; e < 32; ++e) elements.push_back(source[place(e).first * 32 + place(e).second]);
            const std::vector<PackedElement> expected = quantized_group(elements, bits, Scalar::f32);
            for (std::size_t e = 0; e < 32; ++e)
              wrong += packed_element(layout, bytes.data(), place(e).first, place(e).second).code != expected[e].code;
          }
          INFO(description(layout, isa) << ", unit " << unit);
          CHECK(wrong == 0);
        });
      }
}

TEST_CASE("packed_encode leaves zeros in the padding of every row of dwords that it writes") {
  for (const PackedLayout& layout : all_layouts(100, 50)) {
    at_every_isa([&](kvc::Isa isa) {
      std::vector<unsigned char> bytes(layout.bytes(), 0xff);
      const std::vector<float> source = normal_floats(100 * 50, 1);
      active_packed().encode(layout, bytes.data(), {0, 100, 0, 50}, {source.data(), 100, 1});
      std::vector<std::uint32_t> dwords(layout.code_dwords());
      std::memcpy(dwords.data(), bytes.data(), 4 * dwords.size());
      std::vector<bool> written(dwords.size() / kvc::TileLanes);
      for (std::size_t p = 0; p < 50; ++p)
        for (std::size_t lane = 0; lane < 100; ++lane) {
          const PackedLayout::CodePlace place = layout.code_place(p, lane);
          const PackedLayout::PlanePlace bit = layout.plane_place(place.plane);
          dwords[place.dword + bit.row * kvc::TileLanes] &= ~(((1u << layout.low_bits()) - 1) << bit.shift);
          if (layout.bits == 3) dwords[place.dword + bit.high_row * kvc::TileLanes] &= ~(1u << bit.high_shift);
          for (std::size_t row = 0; row < layout.unit_rows(); ++row) written[place.dword / kvc::TileLanes + row] = true;
        }
      std::size_t not_zero = 0;
      for (std::size_t i = 0; i < dwords.size(); ++i) not_zero += written[i / kvc::TileLanes] && dwords[i] != 0;
      INFO(description(layout, isa));
      CHECK(not_zero == 0);
    });
  }
}

TEST_CASE("a constant group has scale 0 and code 0") {
  for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth})
    at_every_isa([&](kvc::Isa isa) {
      const PackedLayout layout{4, along, 32, 32, 32, Scalar::f16};
      const std::vector<float> source(32 * 32, -2.75f);
      std::vector<unsigned char> bytes(layout.bytes());
      active_packed().encode(layout, bytes.data(), {0, 32, 0, 32}, {source.data(), 32, 1});
      const PackedElement element = packed_element(layout, bytes.data(), 5, 21);
      INFO(kvc::to_string(isa));
      CHECK(element.code == 0);
      CHECK(element.scale == 0);
      CHECK(element.minimum == -2.75f);
    });
}

TEST_CASE("rows that are appended one by one make the same block as one call") {
  for (unsigned bits : AllBits)
    at_every_isa([&](kvc::Isa isa) {
      // A token is one p where groups lie along lanes (values) and one lane where they lie along p (keys).
      const PackedLayout values{bits, GroupsAlong::lanes, 20, 60, 37, Scalar::f16};
      const PackedLayout keys{bits, GroupsAlong::depth, 20, 37, 60, Scalar::f16};
      for (const PackedLayout& layout : {values, keys}) {
        const Block whole(layout);
        std::vector<unsigned char> bytes(layout.bytes());
        for (std::size_t token = 0; token < 37; ++token) {
          const bool is_value = layout.along == GroupsAlong::lanes;
          const Area area = is_value ? Area{0, 60, token, 1} : Area{token, 1, 0, 60};
          active_packed().encode(layout, bytes.data(), area,
                                 {whole.source.data() + (is_value ? token * 60 : token), layout.lanes, 1});
        }
        INFO(description(layout, isa));
        CHECK(bytes == whole.bytes);
      }
    });
}

TEST_CASE("packed_encode reads its source through any strides") {
  for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth}) {
    const PackedLayout layout{4, along, 32, 64, 40, Scalar::f16};
    const Block block(layout);
    std::vector<float> transposed(64 * 40);
    for (std::size_t p = 0; p < 40; ++p)
      for (std::size_t lane = 0; lane < 64; ++lane) transposed[lane * 40 + p] = block.source[p * 64 + lane];
    at_every_isa([&](kvc::Isa isa) {
      std::vector<unsigned char> bytes(layout.bytes());
      active_packed().encode(layout, bytes.data(), {0, 64, 0, 40}, {transposed.data(), 1, 40});
      INFO(kvc::to_string(isa));
      CHECK(bytes == block.bytes);
    });
  }
}

TEST_CASE("packed_decode gives code * scale + minimum with two roundings, bit for bit, for any area and strides") {
  for (const PackedLayout& layout : all_layouts(100, 50)) {
    const Block block(layout);
    for (const Area& area : {Area{0, 100, 0, 50}, Area{17, 60, 3, 31}, Area{99, 1, 49, 1}})
      for (bool lanes_follow : {false, true})
        at_every_isa([&](kvc::Isa isa) {
          const std::size_t depth_stride = lanes_follow ? 100 : 1, lane_stride = lanes_follow ? 1 : 50;
          std::vector<float> back(100 * 50, Sentinel);
          active_packed().decode(layout, block.bytes.data(), area, {back.data(), depth_stride, lane_stride});
          std::size_t wrong = 0;
          for (std::size_t p = 0; p < area.depth_count; ++p)
            for (std::size_t lane = 0; lane < area.lanes; ++lane) {
              const PackedElement element =
                  packed_element(layout, block.bytes.data(), area.depth_begin + p, area.lane_begin + lane);
              const volatile float scaled = static_cast<float>(element.code) * element.scale;  // volatile: no fusing
              float& got = back[p * depth_stride + lane * lane_stride];
              wrong += got != scaled + element.minimum;
              got = Sentinel;
            }
          for (float rest : back) wrong += rest != Sentinel;
          INFO(description(layout, isa));
          CHECK(wrong == 0);
        });
  }
}

TEST_CASE("packed_product equals the sum over decoded elements for every format") {
  for (std::size_t lanes : {16u, 33u, 80u, 128u})
    for (std::size_t steps : {8u, 80u, 257u})
      for (const PackedLayout& layout : all_layouts(lanes, steps))
        check_product(layout, {0, lanes, 0, steps}, 3, false);
}

TEST_CASE("packed_product serves every number of rows and lanes") {
  for (std::size_t rows : {1u, 2u, 3u, 4u, 7u, 8u, 9u, 16u, 64u})
    for (std::size_t lanes : {1u, 7u, 8u, 15u, 17u, 31u, 32u, 64u, 96u, 100u})
      for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth})
        check_product({4, along, 32, lanes, 72, Scalar::f16}, {0, lanes, 0, 72}, rows, rows % 2 == 0);
}

TEST_CASE("packed_product of a area reads only that area") {
  for (unsigned bits : AllBits) {
    check_product({bits, GroupsAlong::lanes, 20, 120, 96, Scalar::f16}, {40, 50, 32, 37}, 3, true);
    check_product({bits, GroupsAlong::lanes, 32, 128, 320, Scalar::f32}, {96, 32, 32, 288}, 4, false);
    check_product({bits, GroupsAlong::depth, 20, 100, 200, Scalar::f16}, {48, 41, 60, 135}, 3, true);
    check_product({bits, GroupsAlong::depth, 160, 64, 480, Scalar::f32}, {16, 48, 160, 311}, 4, false);
  }
}

TEST_CASE("packed_product over no p replaces by zero") {
  for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth}) {
    const Block block({4, along, 32, 32, 32, Scalar::f16});
    at_every_isa([&](kvc::Isa isa) {
      INFO(kvc::to_string(isa));
      CHECK(product(block, {0, 20, 0, 0}, {}, 2) == std::vector<float>(40, 0.0f));
    });
  }
}

TEST_CASE("packed_product writes exactly the area's lanes of each row") {
  for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth}) {
    const Block block({4, along, 20, 60, 40, Scalar::f16});
    const std::vector<float> coefficients = normal_floats(5 * 40, 2);
    at_every_isa([&](kvc::Isa isa) {
      std::vector<float> results(5 * 64, Sentinel);
      active_packed().product(block.layout, block.bytes.data(), {0, 47, 0, 40}, {coefficients.data(), 5, 40},
                              {results.data(), 64, false});
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < results.size(); ++i) wrong += (results[i] == Sentinel) != (i % 64 >= 47);
      INFO(kvc::to_string(isa));
      CHECK(wrong == 0);
    });
  }
}

TEST_CASE("packed_product gives the same bits however rows and lanes are split over calls") {
  const std::size_t rows = 13, steps = 160;
  const std::vector<float> coefficients = normal_floats(rows * steps, 2);
  for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth}) {
    const Block block({4, along, 32, 128, steps, Scalar::f16});
    at_every_isa([&](kvc::Isa isa) {
      const std::vector<float> whole = product(block, {0, 128, 0, steps}, coefficients, rows);
      std::size_t different = 0;
      for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t begin : {0u, 32u, 96u}) {
          const std::vector<float> row(coefficients.begin() + std::ptrdiff_t(r * steps),
                                       coefficients.begin() + std::ptrdiff_t((r + 1) * steps));
          const std::vector<float> part = product(block, {begin, 32, 0, steps}, row, 1);
          for (std::size_t lane = 0; lane < 32; ++lane) different += part[lane] != whole[r * 128 + begin + lane];
        }
      INFO(kvc::to_string(isa));
      CHECK(different == 0);
    });
  }
}
