#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace evaluation {

/// A colour of eight bits a channel.
struct Colour {
  std::uint8_t red = 0, green = 0, blue = 0;
};

/// A PNG image of one colour, as opaque as each pixel says, from 0 (nothing) to 15. Whatever lies behind it shines through,
/// so that it suits light pages and dark ones. `pixels`: row by row, `width` to a row.
std::string png_of(std::span<const std::uint8_t> pixels, std::size_t width, Colour colour);

/// The bytes as a URL that holds them: data:image/png;base64,...
std::string png_url(const std::string& png);

}  // namespace evaluation
