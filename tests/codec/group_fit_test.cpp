// Fits of GroupQuant beyond minimum and maximum.
#include "catch_shim.hpp"

#include <cmath>

#include "kvc/codec/group_quant.hpp"
#include "support/oracle.hpp"

using namespace kvc;

namespace {

constexpr std::size_t TokenCount = 80, Dim = 80;

/// Rows with an outlier in most groups, and with zeros.
std::vector<float> sample(unsigned seed = 11) {
  std::vector<float> rows = oracle::normal_floats(TokenCount * Dim, seed, 0.3f);
  for (std::size_t i = 0; i < rows.size(); i += 17) rows[i] *= 8;
  for (std::size_t i = 5; i < rows.size(); i += 41) rows[i] = 0;
  return rows;
}

struct Encoded {
  GroupQuantCodec codec;
  Role role;
  std::vector<std::byte> block;

  Encoded(const GroupQuant& format, Role of, const std::vector<float>& rows, std::size_t step = TokenCount)
      : codec(format, of, Dim), role(of), block(codec.block_bytes(TokenCount)) {
    for (std::size_t first = 0; first < TokenCount; first += step)
      codec.encode({rows.data() + first * Dim, step, Dim}, block.data(), TokenCount, first);
  }
  oracle::PackedElement element(std::size_t token, std::size_t channel) const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(block.data());
    const auto layout = codec.layout(TokenCount);
    return role == Role::key ? oracle::packed_element(layout, bytes, channel, token)
                             : oracle::packed_element(layout, bytes, token, channel);
  }
  std::vector<float> decoded() const {
    std::vector<float> rows(TokenCount * Dim);
    codec.decode(block.data(), TokenCount, 0, {rows.data(), TokenCount, Dim});
    return rows;
  }
};

/// Calls verify(format, role) for both axes and roles, groups with and without padding, 2 to 8 bits.
template <class Check>
void for_all(Fit fit, Scalar metadata, Check verify) {
  for (const unsigned bits : {2u, 3u, 4u, 8u})
    for (const Axis axis : {Axis::channel, Axis::token})
      for (const std::size_t group : {16u, 20u, 80u})
        for (const Role role : {Role::key, Role::value}) {
          const GroupQuant format{bits, axis, group, metadata, fit};
          INFO(GroupQuantCodec(format, role, Dim).name() << (role == Role::key ? " keys" : " values"));
          verify(format, role);
        }
}

}  // namespace

TEST_CASE("whole_zero rounds the least element to a multiple of the scale, so zeros stay zeros") {
  const std::vector<float> rows = sample();
  for_all(Fit::whole_zero, Scalar::f32, [&](const GroupQuant& format, Role role) {
    const Encoded plain({format.bits, format.axis, format.group, Scalar::f32}, role, rows), fitted(format, role, rows);
    const std::vector<float> read = fitted.decoded();
    std::size_t wrong = 0, zeros = 0;
    for (std::size_t t = 0; t < TokenCount; ++t)
      for (std::size_t c = 0; c < Dim; ++c) {
        const auto [code, scale, minimum] = fitted.element(t, c);
        const auto least = plain.element(t, c).minimum;
        const float zero = std::nearbyint(least / scale);
        wrong += scale != plain.element(t, c).scale || minimum != zero * scale;
        const double x = rows[t * Dim + c], top = (1u << format.bits) - 1;
        const double wanted = std::clamp(std::nearbyint(x / double(scale) - double(zero)), 0.0, top);
        wrong += std::fabs(wanted - code) > (std::fabs(x) < 1e-6 ? 0 : 1);
        wrong += std::fabs(double(read[t * Dim + c]) - x) > double(scale) * 1.001;
        const bool inside = least <= 0 && double(zero) + top >= 0;
        zeros += x == 0 && inside;
        wrong += x == 0 && inside && std::fabs(read[t * Dim + c]) > 1e-6f * std::fabs(minimum);
      }
    CHECK(wrong == 0);
    CHECK(zeros > 50);
  });
}

TEST_CASE("half_quadratic lowers the sum of |error|^0.7 and leaves the scale alone") {
  std::vector<float> rows = sample();
  for (float& x : rows) x *= 3;  // errors of the size that its beta is made for
  for_all(Fit::half_quadratic, Scalar::f32, [&](const GroupQuant& format, Role role) {
    const Encoded plain({format.bits, format.axis, format.group, Scalar::f32}, role, rows), fitted(format, role, rows);
    const std::vector<float> before = plain.decoded(), after = fitted.decoded();
    double sum_before = 0, sum_after = 0;
    std::size_t moved = 0, scales = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      sum_before += std::pow(std::fabs(double(rows[i]) - double(before[i])), 0.7);
      sum_after += std::pow(std::fabs(double(rows[i]) - double(after[i])), 0.7);
      const auto was = plain.element(i / Dim, i % Dim), is = fitted.element(i / Dim, i % Dim);
      moved += was.minimum != is.minimum;
      scales += was.scale != is.scale;
    }
    CHECK(scales == 0);
    CHECK(moved > rows.size() / 2);
    CHECK(sum_after < sum_before * (format.bits == 8 ? 1.02 : 0.99));
  });
}

TEST_CASE("Codes belong to the minimum as stored, in f16 too") {
  const std::vector<float> rows = sample();
  for (const Fit fit : {Fit::whole_zero, Fit::half_quadratic})
    for_all(fit, Scalar::f16, [&](const GroupQuant& format, Role role) {
      const Encoded fitted(format, role, rows);
      const std::vector<float> read = fitted.decoded();
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto [code, scale, minimum] = fitted.element(i / Dim, i % Dim);
        wrong += minimum != oracle::rounded_to(Scalar::f16, minimum);
        const double clamped =
            std::clamp(double(rows[i]), double(minimum), double(minimum) + double(scale) * ((1u << format.bits) - 1));
        wrong += std::fabs(double(read[i]) - clamped) > double(scale) * 0.501 + 1e-6;
      }
      CHECK(wrong == 0);
    });
}

TEST_CASE("Fits give the same bytes at every instruction set and in any steps", "[exhaustive]") {
  const std::vector<float> rows = sample();
  for (const Fit fit : {Fit::whole_zero, Fit::half_quadratic})
    for_all(fit, Scalar::f16, [&](const GroupQuant& format, Role role) {
      const std::vector<std::byte> first = Encoded(format, role, rows).block;
      oracle::at_every_isa([&](Isa isa) {
        INFO(to_string(isa));
        CHECK(Encoded(format, role, rows).block == first);
        CHECK(Encoded(format, role, rows, format.axis == Axis::channel ? format.group : 1).block == first);
      });
    });
}

TEST_CASE("Constant groups are exact under every fit") {
  const std::vector<float> rows(TokenCount * Dim, 1.7f);
  for (const Fit fit : {Fit::whole_zero, Fit::half_quadratic})
    for_all(fit, Scalar::f32,
            [&](const GroupQuant& format, Role role) { CHECK(Encoded(format, role, rows).decoded() == rows); });
}

TEST_CASE("Codecs name the fit that is not the usual one") {
  CHECK(make_codec(GroupQuant{.bits = 4, .fit = Fit::half_quadratic}, Role::key, 16)->name() ==
        "q4-channel-g32-half_quadratic");
  CHECK(make_codec(GroupQuant{.bits = 4, .fit = Fit::min_max}, Role::key, 16)->name() == "q4-channel-g32");
}
