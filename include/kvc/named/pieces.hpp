#pragma once
#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/abi.hpp"

// The pieces of a policy text. All of them are views into the text, so that a complaint can point at one.
namespace kvc::inline KVC_ABI::detail {

inline bool is_space(char letter) {
  return letter == ' ' || letter == '\t' || letter == '\n' || letter == '\r';
}
inline std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

/// The pieces between separators that stand in no parentheses, without the spaces around them.
inline std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> pieces;
  std::size_t begin = 0, nesting = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    nesting += text[i] == '(';
    nesting -= text[i] == ')';
    if (text[i] != separator || nesting != 0) continue;
    pieces.push_back(trimmed(text.substr(begin, i - begin)));
    begin = i + 1;
  }
  pieces.push_back(trimmed(text.substr(begin)));
  return pieces;
}

/// What stands before and behind the first separator; behind is empty if there is none.
inline std::pair<std::string_view, std::string_view> split_once(std::string_view text, char separator) {
  const std::size_t at = text.find(separator);
  if (at == std::string_view::npos) return {trimmed(text), text.substr(text.size())};
  return {trimmed(text.substr(0, at)), trimmed(text.substr(at + 1))};
}

/// What stands between the parentheses around a value, or the value itself if it has none.
inline std::string_view without_parentheses(std::string_view value) {
  if (value.empty() || value.front() != '(') return value;
  std::size_t nesting = 0;
  for (std::size_t i = 0; i < value.size(); ++i) {
    nesting += value[i] == '(';
    nesting -= value[i] == ')';
    if (nesting == 0) return i + 1 == value.size() ? trimmed(value.substr(1, value.size() - 2)) : value;
  }
  return value;
}

}  // namespace kvc::inline KVC_ABI::detail
