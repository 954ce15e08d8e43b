#include "catch_shim.hpp"

#include <cmath>
#include <vector>

#include "kvc/kvc.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;

TEST_CASE("rotate() turns every pair by delta times its frequency, to the precision of f32") {
  for (const bool interleaved : {false, true})
    for (const std::size_t dim : {16u, 128u})
      for (const double delta : {0.0, 1.0, -1.0, 17.0, -4095.0, 131072.0, -1048577.0, 67108863.0}) {
        const Rotary rotary = Rotary::standard(dim, 500000.0, interleaved);
        support::Dice dice(5);
        const std::vector<float> row = dice.row(dim);
        std::vector<float> turned = row;
        rotate(turned, rotary, delta);
        INFO("dim " << dim << ", delta " << delta << ", interleaved " << interleaved);
        double worst = 0;
        for (std::size_t i = 0; i < dim / 2; ++i) {
          const std::size_t x = interleaved ? 2 * i : i, y = interleaved ? 2 * i + 1 : i + dim / 2;
          const long double angle = static_cast<long double>(delta) * static_cast<long double>(rotary.inv_freq[i]);
          const auto c = static_cast<double>(std::cos(angle)), s = static_cast<double>(std::sin(angle));
          worst = std::max({worst, std::fabs(turned[x] - (row[x] * c - row[y] * s)),
                            std::fabs(turned[y] - (row[x] * s + row[y] * c))});
        }
        CHECK(worst < 1e-6);
      }
}

TEST_CASE("A Rotation turns rows exactly as rotate() does") {
  for (const bool interleaved : {false, true}) {
    const Rotary rotary = Rotary::standard(24, 10000.0, interleaved);
    std::vector<float> cosines(12), sines(12);
    const Rotation rotation{cosines, sines};
    rotation.set(rotary, -77);
    support::Dice dice(6);
    for (int i = 0; i < 5; ++i) {
      std::vector<float> a = dice.row(32), b = a;  // eight channels are not rotated
      rotate(a, rotary, -77);
      rotation.apply(rotary, b);
      CHECK(a == b);
    }
  }
}
