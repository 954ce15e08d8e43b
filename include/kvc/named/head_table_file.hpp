#pragma once
#include <cstddef>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

#include "kvc/named/text.hpp"
#include "kvc/policy/head_table.hpp"

namespace kvc::inline KVC_ABI {

/// The head table in a file. Throws Error(bad_file) if the file cannot be read or holds something else.
inline HeadTable load_head_table(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) fail(ErrorCode::bad_file, {path, ": cannot be opened; a head table was expected"});
  std::string text;
  char piece[4096];
  // A table of any model is far smaller than this; a larger file is something else and need not be read to its end.
  constexpr std::size_t Most = std::size_t{1} << 24;
  std::size_t count = 1;
  while (count != 0 && text.size() < Most) {
    count = std::fread(piece, 1, sizeof(piece), file);
    text.append(piece, count);
  }
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) fail(ErrorCode::bad_file, {path, ": cannot be read; a head table was expected"});
  return HeadTable::parse(text, path);
}

/// Writes a head table into a file, in the place of what it holds. Throws Error(bad_file) if it cannot be written.
inline void save_head_table(const HeadTable& table, const std::string& path) {
  const std::string text = table.to_string();
  std::FILE* file = std::fopen(path.c_str(), "wb");
  bool stored = file && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (file) stored = std::fclose(file) == 0 && stored;
  if (!stored) fail(ErrorCode::bad_file, {path, ": the head table cannot be written there"});
}

/// A text names a head table by its file. "none" is a table in which no head retrieves.
template <>
struct TextOf<HeadTable> {
  static std::string expected() { return "the file of a head table, or none"; }
  static std::optional<HeadTable> read(std::string_view text) {
    if (text.empty()) return std::nullopt;
    return text == "none" ? HeadTable{} : load_head_table(std::string(text));
  }
  static std::string write(const HeadTable& table) { return table.empty() ? "none" : ""; }
};

}  // namespace kvc::inline KVC_ABI
