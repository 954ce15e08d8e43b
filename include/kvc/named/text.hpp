#pragma once
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/policy/budget.hpp"

namespace kvc::inline KVC_ABI {

/// The words of an enumeration in policy texts. A policy of yours with its own enumeration specializes it:
/// `static constexpr std::array Words{std::pair{"average", Pooling::average}, …};`
template <class Enum>
struct EnumWords;

/// How values of type T are read from and written to policy texts. `expected()` completes "takes …".
template <class T>
struct TextOf;

template <class T>
requires(std::unsigned_integral<T> && !std::same_as<T, bool>) struct TextOf<T> {
  static std::string expected() { return "a whole number"; }
  static std::optional<T> read(std::string_view text) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
    return value;
  }
  static std::string write(T value) { return std::to_string(value); }
};

template <std::floating_point T>
struct TextOf<T> {
  static std::string expected() { return "a number"; }
  static std::optional<T> read(std::string_view text) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
    return value;
  }
  static std::string write(T value) {
    std::array<char, 64> text;
    return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
  }
};

/// A word without a value means true.
template <>
struct TextOf<bool> {
  static std::string expected() { return "true or false"; }
  static std::optional<bool> read(std::string_view text) {
    if (text.empty() || text == "true" || text == "1") return true;
    if (text == "false" || text == "0") return false;
    return std::nullopt;
  }
  static std::string write(bool value) { return value ? "true" : "false"; }
};

template <class T>
struct TextOf<std::optional<T>> {
  static std::string expected() { return TextOf<T>::expected(); }
  static std::optional<std::optional<T>> read(std::string_view text) {
    const std::optional<T> value = TextOf<T>::read(text);
    return value ? std::optional<std::optional<T>>(value) : std::nullopt;
  }
  static std::string write(const std::optional<T>& value) { return value ? TextOf<T>::write(*value) : "unset"; }
};

template <class T>
requires std::is_enum_v<T>
struct TextOf<T> {
  static std::string expected() {
    std::string list;
    for (const auto& [word, value] : EnumWords<T>::Words) list += (list.empty() ? "" : " | ") + std::string(word);
    return list;
  }
  static std::optional<T> read(std::string_view text) {
    for (const auto& [word, value] : EnumWords<T>::Words)
      if (text == word) return value;
    return std::nullopt;
  }
  static std::string write(T wanted) {
    for (const auto& [word, value] : EnumWords<T>::Words)
      if (value == wanted) return word;
    return "?";
  }
};

/// A whole number is tokens, a number with a point in (0, 1] the fraction kept.
template <>
struct TextOf<Budget> {
  static std::string expected() { return "tokens (1024) or the fraction kept (0.25)"; }
  static std::optional<Budget> read(std::string_view text) {
    if (text.find('.') == std::string_view::npos) {
      const auto tokens = TextOf<std::size_t>::read(text);
      return tokens ? std::optional<Budget>(*tokens) : std::nullopt;
    }
    const auto kept = TextOf<double>::read(text);
    if (!kept || *kept <= 0 || *kept > 1) return std::nullopt;
    return Budget::fraction(*kept);
  }
  static std::string write(const Budget& budget) { return budget.to_string(); }
};

/// Edits (insert, delete, replace a letter) between two words, for "did you mean".
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replaced}));
    }
  }
  return row[b.size()];
}

/// "did you mean 'snapkv'? " if one of the words is near, then "there are: …".
inline std::string suggestion(std::string_view wrong, std::span<const std::string> words) {
  std::string list, nearest;
  std::size_t best = std::max<std::size_t>(2, wrong.size() / 3) + 1;
  for (const std::string& word : words) {
    list += (list.empty() ? "" : ", ") + word;
    const std::size_t distance = edit_distance(wrong, word);
    if (distance < best) {
      best = distance;
      nearest = word;
    }
  }
  return (nearest.empty() ? "" : "did you mean '" + nearest + "'? ") + "there are: " + list;
}

}  // namespace kvc
