#include "catch_shim.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "kvc/kernels/dispatch.hpp"
#include "support/oracle.hpp"

using namespace oracle;
using kvc::Arithmetic;

namespace {

constexpr std::size_t Dim = 128, Tokens = 256;

enum class Data { normal, outliers };

/// One block as keys (lane = token) or values (lane = channel) from a normal distribution; with outliers, four channels are
/// eight times as wide and stand off by 12.
struct Sample {
  bool keys;
  PackedLayout layout;
  std::vector<float> source;  // [p][lane]
  std::vector<unsigned char> bytes;

  Sample(unsigned bits, bool is_keys, GroupsAlong along, Data data)
      : keys(is_keys),
        layout{bits, along, 32, is_keys ? Tokens : Dim, is_keys ? Dim : Tokens, Scalar::f16},
        source(normal_floats(Tokens * Dim, 11)),
        bytes(layout.bytes()) {
    for (std::size_t p = 0; p < layout.p; ++p)
      for (std::size_t lane = 0; lane < layout.lanes; ++lane) {
        const std::size_t channel = keys ? p : lane;
        float& x = source[p * layout.lanes + lane];
        if (data == Data::outliers && channel % 32 == 11) x = 8 * x + (channel % 64 == 11 ? 12.0f : -12.0f);
      }
    active().packed_encode(layout, bytes.data(), {0, layout.lanes, 0, layout.p}, {source.data(), layout.lanes, 1});
  }
  float original(std::size_t p, std::size_t lane) const { return source[p * layout.lanes + lane]; }
  double decoded(std::size_t p, std::size_t lane) const {
    return packed_element(layout, bytes.data(), p, lane).value();
  }
};

/// Queries, or weights like those of a softmax whose logits deviate by 1.5.
std::vector<float> coefficients_of(const Sample& sample, std::size_t rows) {
  std::vector<float> c = normal_floats(rows * sample.layout.p, 12);
  if (!sample.keys)
    for (float& x : c) x = std::exp(1.5f * x - 4.0f);
  return c;
}

/// RMS of (product - exact product of decoded elements) over RMS of (exact product of decoded - of original elements).
double relative_error(const Sample& sample, Arithmetic arithmetic, std::size_t rows) {
  const std::vector<float> c = coefficients_of(sample, rows);
  const std::size_t lanes = sample.layout.lanes, steps = sample.layout.p;
  std::vector<float> results(rows * lanes);
  active().packed_product(sample.layout, sample.bytes.data(), {0, lanes, 0, steps},
                          {c.data(), rows, steps, arithmetic, !sample.keys}, {results.data(), lanes, false});
  double arithmetic_error = 0, format_error = 0;
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      double decoded = 0, original = 0;
      for (std::size_t p = 0; p < steps; ++p) {
        decoded += double(c[r * steps + p]) * sample.decoded(p, lane);
        original += double(c[r * steps + p]) * double(sample.original(p, lane));
      }
      arithmetic_error += std::pow(results[r * lanes + lane] - decoded, 2);
      format_error += std::pow(decoded - original, 2);
    }
  return std::sqrt(arithmetic_error / format_error);
}

}  // namespace

TEST_CASE("Accurate arithmetic adds at most 5 % of the format's own error, for keys and values of every format") {
  for (unsigned bits : {2u, 3u, 4u, 8u})
    for (bool keys : {true, false})
      for (GroupsAlong along : {GroupsAlong::lanes, GroupsAlong::p})
        for (Data data : {Data::normal, Data::outliers}) {
          const Sample sample(bits, keys, along, data);
          at_every_isa([&](kvc::Isa isa) {
            const double error = relative_error(sample, Arithmetic::accurate, 5);
            INFO(kvc::to_string(isa) << ": " << bits << " bits, " << (keys ? "keys" : "values") << " in groups along "
                                     << (along == GroupsAlong::lanes ? "lanes" : "p")
                                     << (data == Data::outliers ? ", outliers" : "") << ": " << 100 * error << " %");
            if (std::getenv("SHOW") && int(isa) >= int(kvc::Isa::avx2)) std::printf("%s %u bits %s along %s %s: accurate %.2f %% fast %.2f %%\n", kvc::to_string(isa), bits, keys?"keys":"values", along == GroupsAlong::lanes ? "lanes" : "p", data==Data::outliers?"outliers":"normal", 100*error, 100*relative_error(sample, Arithmetic::fast, 5));
            CHECK(error <= 0.05);
          });
        }
}
