#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// A value of an enumeration and the word that stands for it in policy texts, in help and in messages. An enumeration
/// declares its words once, beside itself, in a function that argument-dependent lookup finds:
///
///     enum class Pooling : std::uint8_t { average, max };
///     constexpr auto words_of(Pooling) { return words(word("average", Pooling::average), word("max", Pooling::max)); }
///
/// A word is spelt with lower-case letters, digits and underscores.
struct EnumWord {
  const char* text;
  std::uint64_t value;  ///< of the enumerator, as an integer
};

template <class Enum>
constexpr EnumWord word(const char* text, Enum value) {
  return {text, static_cast<std::uint64_t>(value)};
}
template <class... Words>
constexpr std::array<EnumWord, sizeof...(Words)> words(Words... all) {
  return {all...};
}

/// An enumeration that has declared its words.
template <class Enum>
concept HasWords = std::is_enum_v<Enum> && requires(Enum value) {
  words_of(value);
};

/// The words of an enumeration, in one place of memory.
template <HasWords Enum>
inline constexpr auto Words = words_of(Enum{});

/// The word of `value`; "unknown" for a number that is no enumerator.
template <HasWords Enum>
constexpr const char* name_of(Enum value) {
  for (const EnumWord& known : Words<Enum>)
    if (known.value == static_cast<std::uint64_t>(value)) return known.text;
  return "unknown";
}

}  // namespace kvc::inline KVC_ABI
