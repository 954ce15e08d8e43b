#include "evaluation/png.hpp"

#include <vector>

#include "catch_shim.hpp"

using namespace evaluation;

// What the images must be was made with Python's zlib.crc32, zlib.adler32 and base64.

TEST_CASE("a picture of three pixels is the PNG that Python's zlib and struct make of them") {
  const std::vector<std::uint8_t> pixels = {0, 15, 8};
  CHECK(png_url(png_of(pixels, 3, {1, 2, 3})) ==
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAMAAAABBAMAAADpzgmHAAAAMFBMVEUBAgMBAgMBAgMBAgMBAgMBAg"
        "MBAgMBAgMBAgMBAgMBAgMBAgMBAgMBAgMBAgMBAgNZVXHVAAAAEHRSTlMAESIzRFVmd4iZqrvM3e7/dpUBFQAAAA5JREFUeAEBAw"
        "D8/wAPgAChAJC3Q81lAAAAAElFTkSuQmCC");
}

TEST_CASE("a picture of more than 65,535 bytes is stored in several blocks") {
  const std::vector<std::uint8_t> pixels(1000 * 200, 5);
  const std::string png = png_of(pixels, 1000, {0, 0, 0});
  // 200 rows of 500 bytes and one for the filter, two blocks with five bytes before each, and six bytes around them.
  const std::size_t data = 200 * 501 + 2 * 5 + 6;
  CHECK(png.size() == 8 + (12 + 13) + (12 + 48) + (12 + 16) + (12 + data) + 12);
}

TEST_CASE("URLs of data are padded to whole groups of four") {
  CHECK(png_url("M") == "data:image/png;base64,TQ==");
  CHECK(png_url("Ma") == "data:image/png;base64,TWE=");
  CHECK(png_url("Man") == "data:image/png;base64,TWFu");
}
