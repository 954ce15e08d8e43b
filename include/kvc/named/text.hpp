#pragma once
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvc/policy/budget.hpp"
#include "kvc/words.hpp"

namespace kvc::inline KVC_ABI {

/// How values of type T are read from and written to texts: `read` gives nothing where the text is not what was expected,
/// `expected` completes the sentence "it takes …", and `write` gives an empty text for a value that no text can say.
///
/// Numbers, bool, Budget, enumerations with words (kvc/words.hpp), std::optional and std::vector (joined by +) of these are
/// known. A class of yours is, too, if it has `static std::optional<T> parse(std::string_view)`, `std::string to_string() const`
/// and `static constexpr const char* Expected`; another type needs a specialization.
template <class T>
struct TextOf;

namespace detail {
template <class T>
std::optional<T> read_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}
/// The words of an enumeration with bars between them.
inline std::string join_words(std::span<const EnumWord> words) {
  std::string list;
  for (const EnumWord& known : words) list.append(list.empty() ? "" : " | ").append(known.text);
  return list;
}
inline const EnumWord* find_word(std::span<const EnumWord> words, std::string_view text) {
  for (const EnumWord& known : words)
    if (text == known.text) return &known;
  return nullptr;
}
}  // namespace detail

template <class T>
requires(std::unsigned_integral<T> && !std::same_as<T, bool>) struct TextOf<T> {
  static std::string expected() { return "a whole number"; }
  static std::optional<T> read(std::string_view text) { return detail::read_number<T>(text); }
  static std::string write(T value) { return joined({value}); }
};

template <std::floating_point T>
struct TextOf<T> {
  static std::string expected() { return "a number"; }
  static std::optional<T> read(std::string_view text) {
    const std::optional<T> value = detail::read_number<T>(text);
    return value && std::isfinite(*value) ? value : std::nullopt;
  }
  static std::string write(T value) {
    char text[64];
    return {text, std::to_chars(text, text + sizeof(text), value).ptr};
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

template <HasWords Enum>
struct TextOf<Enum> {
  static std::string expected() { return detail::join_words(Words<Enum>); }
  static std::optional<Enum> read(std::string_view text) {
    const EnumWord* found = detail::find_word(Words<Enum>, text);
    return found ? std::optional<Enum>(static_cast<Enum>(found->value)) : std::nullopt;
  }
  static std::string write(Enum value) { return name_of(value); }
};

/// No value is written as no text.
template <class T>
struct TextOf<std::optional<T>> {
  static std::string expected() { return TextOf<T>::expected(); }
  static std::optional<std::optional<T>> read(std::string_view text) {
    std::optional<T> value = TextOf<T>::read(text);
    return value ? std::optional<std::optional<T>>(std::move(value)) : std::nullopt;
  }
  static std::string write(const std::optional<T>& value) { return value ? TextOf<T>::write(*value) : ""; }
};

template <class T>
requires requires(const T value, std::string_view text) {
  { T::parse(text) } -> std::same_as<std::optional<T>>;
  { value.to_string() } -> std::same_as<std::string>;
  { T::Expected } -> std::convertible_to<const char*>;
}
struct TextOf<T> {
  static std::string expected() { return T::Expected; }
  static std::optional<T> read(std::string_view text) { return T::parse(text); }
  static std::string write(const T& value) { return value.to_string(); }
};

/// Values joined by +.
template <class T>
struct TextOf<std::vector<T>> {
  static std::string expected() { return TextOf<T>::expected(); }
  static std::optional<std::vector<T>> read(std::string_view text) {
    std::vector<T> values;
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = std::min(text.find('+', begin), text.size());
      std::optional<T> value = TextOf<T>::read(text.substr(begin, end - begin));
      if (!value) return std::nullopt;
      values.push_back(std::move(*value));
      begin = end + 1;
    }
    return values;
  }
  static std::string write(const std::vector<T>& values) {
    std::string text;
    for (const T& value : values) text.append(text.empty() ? "" : "+").append(TextOf<T>::write(value));
    return text;
  }
};

/// A whole number is tokens, a number with a point in (0, 1] the fraction kept. Pyramids and tables have no text.
template <>
struct TextOf<Budget> {
  static std::string expected() { return "tokens (1024) or the fraction kept (0.25)"; }
  static std::optional<Budget> read(std::string_view text) {
    if (text.find('.') == std::string_view::npos) {
      const auto tokens = detail::read_number<std::size_t>(text);
      return tokens ? std::optional<Budget>(*tokens) : std::nullopt;
    }
    const auto kept = detail::read_number<double>(text);
    if (!kept || !(*kept > 0 && *kept <= 1)) return std::nullopt;
    return Budget::fraction(*kept);
  }
  static std::string write(const Budget& budget) {
    return budget.is_pyramid() || budget.is_table() ? "" : budget.to_string();
  }
};

}  // namespace kvc::inline KVC_ABI
