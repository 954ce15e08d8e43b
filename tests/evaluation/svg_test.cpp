#include "evaluation/svg.hpp"

#include <cmath>

#include "catch_shim.hpp"

using namespace evaluation;

TEST_CASE("text in a picture cannot end its element or attribute") {
  CHECK(escaped("a < b & \"c\" > d") == "a &lt; b &amp; &quot;c&quot; &gt; d");
  Svg svg(10, 10, "\"quoted\"");
  svg.text(1, 2, "start", "ink", "</text>");
  const std::string picture = svg.finish();
  CHECK(picture.find("aria-label=\"&quot;quoted&quot;\"") != std::string::npos);
  CHECK(picture.find("&lt;/text&gt;</text>") != std::string::npos);
}

TEST_CASE("a scale places numbers linearly or by their logarithms, and those beyond its ends at the ends") {
  const Scale linear{0, 10, 100, 200}, logarithmic{1, 100, 200, 0, true};
  CHECK(linear.at(2.5) == 125);
  CHECK(linear.at(-1) == 100);
  CHECK(std::abs(logarithmic.at(10) - 100) < 1e-9);
  CHECK(logarithmic.at(1000) == 0);
}

TEST_CASE("the numbers along an axis are round, and no more than asked for") {
  CHECK(round_numbers(0, 90, 5) == std::vector<double>{0, 20, 40, 60, 80});
  CHECK(round_numbers(-2, 30, 8) == std::vector<double>{0, 5, 10, 15, 20, 25, 30});
  for (const double high : {0.7, 1.0, 3.3, 48.0, 1024.0}) {
    const auto numbers = round_numbers(0, high, 6);
    CHECK((numbers.size() >= 2 && numbers.size() <= 6));
    CHECK(numbers.back() <= high * (1 + 1e-9));
  }
}
