// What encoding does with groups whose offset or size the metadata type hardly holds.
#include "catch_shim.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kvc/kernels/dispatch.hpp"
#include "support/oracle.hpp"

using namespace oracle;

namespace {

using kvc::GroupQuant;
using kvc::Scalar;

/// A block of 32 lanes × 32 depths in groups of 32, encoded and read back.
struct Encoded {
  PackedLayout layout;
  std::vector<unsigned char> bytes;
  std::vector<float> read = std::vector<float>(32 * 32);

  Encoded(unsigned bits, GroupsAlong along, Scalar metadata, const std::vector<float>& source)
      : layout{bits, along, 32, 32, 32, metadata}, bytes(layout.bytes()) {
    active_packed().encode(layout, bytes.data(), {0, 32, 0, 32}, {source.data(), 32, 1});
    active_packed().decode(layout, bytes.data(), {0, 32, 0, 32}, {read.data(), 32, 1});
  }
  /// The scale of the group of an element.
  double scale(std::size_t d, std::size_t lane) const { return packed_element(layout, bytes.data(), d, lane).scale; }
};

std::vector<float> uniform(float from, float to, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> values(32 * 32);
  for (float& x : values) x = from + (to - from) * (static_cast<float>(random() >> 8) / 16777216.0f);
  return values;
}

template <class Check>
void for_all(Check check) {
  for (unsigned bits : {2u, 3u, 4u, 8u})
    for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::depth})
      for (Scalar metadata : {Scalar::f16, Scalar::f32})
        at_every_isa([&](kvc::Isa isa) {
          INFO(kvc::to_string(isa) << ", " << bits << " bits, along " << (along == GroupsAlong::lanes ? "lanes" : "depth")
                                   << ", metadata " << (metadata == Scalar::f16 ? "f16" : "f32"));
          check(bits, along, metadata);
        });
}

}  // namespace

TEST_CASE("every element reads back to half a step, whatever the group's offset does to a minimum in f16") {
  for (float offset : {0.0f, 3.0f, -77.0f, 600.0f, -600.0f, 30000.0f, 1e-6f})
    for (float size : {1e-4f, 1.0f, 50.0f}) {
      const std::vector<float> source = uniform(offset, offset + size, 7);
      for_all([&](unsigned bits, GroupsAlong along, Scalar metadata) {
        const Encoded encoded(bits, along, metadata, source);
        double worst = 0;
        for (std::size_t i = 0; i < source.size(); ++i) {
          const double step = encoded.scale(i / 32, i % 32), error = std::fabs(double(encoded.read[i]) - source[i]);
          worst = std::max(worst, (error - 4e-7 * std::fabs(double(source[i]))) / step);  // less the rounding of f32
        }
        INFO("offset " << offset << ", size " << size);
        CHECK(worst <= 0.501);
      });
    }
}

TEST_CASE("an offset of 600 costs codes with f16 metadata at most half as much again as an ideal encoder's error") {
  const std::vector<float> source = uniform(600, 601, 3);
  for_all([&](unsigned bits, GroupsAlong along, Scalar metadata) {
    const Encoded encoded(bits, along, metadata, source);
    double worst = 0;
    for (std::size_t i = 0; i < source.size(); ++i)
      worst = std::max(worst, std::fabs(double(encoded.read[i]) - source[i]));
    CHECK(worst <= 1.5 * 0.5 / ((1u << bits) - 1) + 6e-5);
  });
}

TEST_CASE("elements up to the largest magnitude of a format read back finite") {
  for (Scalar metadata : {Scalar::f16, Scalar::f32}) {
    const float most = kvc::largest_magnitude(GroupQuant{.metadata = metadata});
    std::vector<float> source = uniform(-most, most, 5);
    source[0] = most;
    source[33] = -most;
    for_all([&](unsigned bits, GroupsAlong along, Scalar type) {
      if (type != metadata) return;
      const Encoded encoded(bits, along, type, source);
      double worst = 0;
      for (std::size_t i = 0; i < source.size(); ++i)
        worst = std::max(worst, std::fabs(double(encoded.read[i]) - source[i]) / most);
      CHECK(worst <= 1.01 / ((1u << bits) - 1));  // half a step of a range of twice the magnitude
    });
  }
}

TEST_CASE("no finite element gives a code that reads back infinite or not a number") {
  constexpr float Largest = std::numeric_limits<float>::max();
  for (float value : {7e4f, -7e4f, 1e30f, -1e30f, Largest, -Largest})
    for (float other : {0.0f, value, -value, 1.0f}) {
      std::vector<float> source(32 * 32, other);
      for (std::size_t i = 0; i < source.size(); i += 7) source[i] = value;
      for_all([&](unsigned bits, GroupsAlong along, Scalar metadata) {
        const Encoded encoded(bits, along, metadata, source);
        INFO(value << " among " << other);
        CHECK(std::all_of(encoded.read.begin(), encoded.read.end(), [](float x) { return std::isfinite(x); }));
      });
    }
}

TEST_CASE("a group of equal elements has scale 0 and reads back as its element, rounded to the metadata type") {
  for (float value : {0.0f, 0.1f, -3.3f, 600.3f}) {
    const std::vector<float> source(32 * 32, value);
    for_all([&](unsigned bits, GroupsAlong along, Scalar metadata) {
      const Encoded encoded(bits, along, metadata, source);
      CHECK(encoded.scale(0, 0) == 0);
      CHECK(std::fabs(double(encoded.read[5]) - value) <= (metadata == Scalar::f16 ? 0x1p-11 * std::fabs(value) : 0));
    });
  }
}
