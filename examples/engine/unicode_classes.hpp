#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace engine {

/// What the pre-tokenizers ask of a code point: \p{L}, \p{N}, \s or none of them.
enum class CharClass : std::uint8_t { other, letter, number, space };

CharClass char_class(char32_t code);

/// One code point of UTF-8 text and the bytes it takes. A byte that is no valid UTF-8 stands for itself: it comes back
/// as U+FFFD of length 1, so that no input is refused and none is lost.
struct DecodedChar {
  char32_t code = 0;
  std::size_t length = 1;
};

/// `offset` must be below text.size().
DecodedChar decode_utf8(std::string_view text, std::size_t offset);

/// Appends the UTF-8 form of `code`.
template <class String>
void append_utf8(String& out, char32_t code) {
  auto put = [&](char32_t byte) { out.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

}  // namespace engine
