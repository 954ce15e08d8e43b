#include "png.hpp"

#include <algorithm>
#include <array>
#include <string_view>

namespace evaluation {
namespace {

void append_u32(std::string& bytes, std::uint32_t number) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>((number >> shift) & 0xFF));
}

std::uint32_t crc32(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFF;
  for (const char byte : bytes) {
    crc ^= static_cast<std::uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xEDB88320 : 0);
  }
  return ~crc;
}

std::uint32_t adler32(std::string_view bytes) {
  std::uint32_t a = 1, b = 0;
  for (const char byte : bytes) {
    a = (a + static_cast<std::uint8_t>(byte)) % 65521;
    b = (b + a) % 65521;
  }
  return b << 16 | a;
}

void append_chunk(std::string& png, std::string_view name, const std::string& data) {
  append_u32(png, static_cast<std::uint32_t>(data.size()));
  const std::string named = std::string(name) + data;
  png += named;
  append_u32(png, crc32(named));
}

/// A zlib stream of blocks that are stored as they are: pictures of ours are small.
std::string stored(std::string_view bytes) {
  constexpr std::size_t Most = 65535;
  std::string stream = "\x78\x01";
  for (std::size_t begin = 0; begin == 0 || begin < bytes.size(); begin += Most) {
    const std::string_view part = bytes.substr(begin, Most);
    const auto size = static_cast<std::uint16_t>(part.size());
    stream.push_back(begin + Most >= bytes.size() ? 1 : 0);
    for (const std::uint16_t word : {size, static_cast<std::uint16_t>(~size)}) {
      stream.push_back(static_cast<char>(word & 0xFF));
      stream.push_back(static_cast<char>(word >> 8));
    }
    stream += part;
  }
  append_u32(stream, adler32(bytes));
  return stream;
}

/// Rows of four bits a pixel, each behind a byte that says: no filter.
std::string packed_rows(std::span<const std::uint8_t> pixels, std::size_t width) {
  std::string rows;
  for (std::size_t begin = 0; begin < pixels.size(); begin += width) {
    rows.push_back(0);
    for (std::size_t x = 0; x < width; x += 2) {
      const int low = x + 1 < width ? pixels[begin + x + 1] : 0;
      rows.push_back(static_cast<char>(pixels[begin + x] << 4 | low));
    }
  }
  return rows;
}

}  // namespace

std::string png_of(std::span<const std::uint8_t> pixels, std::size_t width, Colour colour) {
  std::string head, palette, opacity;
  append_u32(head, static_cast<std::uint32_t>(width));
  append_u32(head, static_cast<std::uint32_t>(width == 0 ? 0 : pixels.size() / width));
  head += {4, 3, 0, 0, 0};  // bits a pixel, colours of a palette, and the only methods there are
  for (int level = 0; level < 16; ++level) {
    palette += {static_cast<char>(colour.red), static_cast<char>(colour.green), static_cast<char>(colour.blue)};
    opacity.push_back(static_cast<char>(level * 17));
  }
  std::string png = "\x89PNG\r\n\x1A\n";
  append_chunk(png, "IHDR", head);
  append_chunk(png, "PLTE", palette);
  append_chunk(png, "tRNS", opacity);
  append_chunk(png, "IDAT", stored(packed_rows(pixels, width)));
  append_chunk(png, "IEND", "");
  return png;
}

std::string png_url(const std::string& png) {
  constexpr char Digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string url = "data:image/png;base64,";
  for (std::size_t begin = 0; begin < png.size(); begin += 3) {
    const std::size_t count = std::min<std::size_t>(3, png.size() - begin);
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < 3; ++i) bits = bits << 8 | (i < count ? static_cast<std::uint8_t>(png[begin + i]) : 0u);
    for (std::size_t i = 0; i < 4; ++i) url.push_back(i <= count ? Digits[(bits >> (18 - 6 * i)) & 63] : '=');
  }
  return url;
}

}  // namespace evaluation
