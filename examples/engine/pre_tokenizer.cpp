#include "pre_tokenizer.hpp"

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>

#include "kvc/error.hpp"
#include "unicode_classes.hpp"

namespace engine {
namespace {

struct Symbol {
  char32_t code;
  CharClass char_class;
  std::size_t offset;
};

std::vector<Symbol> decode(std::string_view text) {
  std::vector<Symbol> symbols;
  symbols.reserve(text.size());
  for (std::size_t offset = 0; offset < text.size();) {
    const DecodedChar decoded = decode_utf8(text, offset);
    symbols.push_back({decoded.code, char_class(decoded.code), offset});
    offset += decoded.length;
  }
  return symbols;
}

bool is_newline(const Symbol& symbol) {
  return symbol.code == '\r' || symbol.code == '\n';
}

/// The regular expressions, matched by hand at the beginning of `rest`: each function returns how many symbols its
/// alternative takes, 0 if it does not match. Alternatives are tried in the order of the expression.
using Rest = std::span<const Symbol>;

std::size_t run_of(Rest rest, std::size_t from, CharClass wanted) {
  std::size_t end = from;
  while (end < rest.size() && rest[end].char_class == wanted) ++end;
  return end - from;
}

/// 's 't 're 've 'm 'll 'd
std::size_t contraction(Rest rest, bool any_case) {
  if (rest[0].code != '\'' || rest.size() < 2) return 0;
  auto letter = [&](std::size_t i) {
    const char32_t code = i < rest.size() ? rest[i].code : 0;
    return any_case && code >= 'A' && code <= 'Z' ? code + ('a' - 'A') : code;
  };
  const char32_t first = letter(1), second = letter(2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((first == 'r' || first == 'v') && second == 'e') return 3;
  return first == 'l' && second == 'l' ? 3 : 0;
}

/// One blank (U+0020), if there is one, and a run of `wanted` after it.
std::size_t blank_and_run(Rest rest, CharClass wanted) {
  const std::size_t blank = rest[0].code == ' ' ? 1 : 0;
  const std::size_t run = run_of(rest, blank, wanted);
  return run ? blank + run : 0;
}

/// \s+(?!\S)|\s+ : blanks before a word leave their last one to it.
std::size_t blanks(Rest rest) {
  const std::size_t run = run_of(rest, 0, CharClass::space);
  return run > 1 && run < rest.size() ? run - 1 : run;
}

std::size_t gpt2_piece(Rest rest) {
  if (const std::size_t taken = contraction(rest, false)) return taken;
  for (const CharClass wanted : {CharClass::letter, CharClass::number, CharClass::other})
    if (const std::size_t taken = blank_and_run(rest, wanted)) return taken;
  return blanks(rest);
}

/// [^\r\n\p{L}\p{N}]?\p{L}+
std::size_t word_with_any_prefix(Rest rest) {
  const bool letter = rest[0].char_class == CharClass::letter;
  if (!letter && (is_newline(rest[0]) || rest[0].char_class == CharClass::number)) return 0;
  const std::size_t prefix = letter ? 0 : 1;
  const std::size_t run = run_of(rest, prefix, CharClass::letter);
  return run ? prefix + run : 0;
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n]*`
std::size_t signs_and_newlines(Rest rest) {
  std::size_t taken = blank_and_run(rest, CharClass::other);
  if (taken == 0) return 0;
  while (taken < rest.size() && is_newline(rest[taken])) ++taken;
  return taken;
}

/// \s*[\r\n]+ : blanks up to and with the last newline among them.
std::size_t blanks_to_newline(Rest rest) {
  std::size_t end = run_of(rest, 0, CharClass::space);
  while (end > 0 && !is_newline(rest[end - 1])) --end;
  return end;
}

std::size_t llama_piece(Rest rest, std::size_t most_digits) {
  if (const std::size_t taken = contraction(rest, true)) return taken;
  if (const std::size_t taken = word_with_any_prefix(rest)) return taken;
  if (const std::size_t taken = run_of(rest, 0, CharClass::number)) return std::min(taken, most_digits);
  if (const std::size_t taken = signs_and_newlines(rest)) return taken;
  if (const std::size_t taken = blanks_to_newline(rest)) return taken;
  return blanks(rest);
}

std::size_t next_piece(PreTokenizer kind, Rest rest) {
  switch (kind) {
    case PreTokenizer::llama_bpe:
      return llama_piece(rest, 3);
    case PreTokenizer::qwen2:
      return llama_piece(rest, 1);
    case PreTokenizer::gpt2:
    case PreTokenizer::smollm:
      break;
  }
  return gpt2_piece(rest);
}

/// The end of the part that is matched as if it were a whole text. For smollm that is a digit, or all up to the next
/// digit: the look-ahead of \s+(?!\S) must see the end of the text there.
std::size_t part_end(PreTokenizer kind, Rest symbols, std::size_t begin) {
  if (kind != PreTokenizer::smollm) return symbols.size();
  auto is_digit = [](const Symbol& symbol) { return symbol.char_class == CharClass::number; };
  if (is_digit(symbols[begin])) return begin + 1;
  const auto digit = std::find_if(symbols.begin() + static_cast<std::ptrdiff_t>(begin), symbols.end(), is_digit);
  return static_cast<std::size_t>(digit - symbols.begin());
}

}  // namespace

PreTokenizer pre_tokenizer_named(std::string_view name) {
  if (name == "smollm" || name == "starcoder" || name == "refact" || name == "command-r") return PreTokenizer::smollm;
  if (name == "gpt-2" || name == "gpt2") return PreTokenizer::gpt2;
  if (name == "llama-bpe" || name == "llama-v3" || name == "llama3") return PreTokenizer::llama_bpe;
  if (name == "qwen2") return PreTokenizer::qwen2;
  kvc::fail(kvc::ErrorCode::unknown_name,
            "pre-tokenizer '" + std::string(name) + "' is not known; expected smollm, gpt-2, llama-bpe or qwen2");
}

void split_text(PreTokenizer kind, std::string_view text, std::vector<std::string_view>& pieces) {
  const std::vector<Symbol> symbols = decode(text);
  std::size_t limit = 0;
  for (std::size_t begin = 0; begin < symbols.size();) {
    if (begin == limit) limit = part_end(kind, symbols, begin);
    const std::size_t end = begin + next_piece(kind, Rest(symbols).subspan(begin, limit - begin));
    const std::size_t last_byte = end < symbols.size() ? symbols[end].offset : text.size();
    pieces.push_back(text.substr(symbols[begin].offset, last_byte - symbols[begin].offset));
    begin = end;
  }
}

}  // namespace engine
