#pragma once
#include <algorithm>
#include <cstddef>
#include <string_view>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// The name of a type, without RTTI.
template <class T>
constexpr std::string_view type_name() {
  const std::string_view function = __PRETTY_FUNCTION__;  // "… [with T = Name; …]" or "… [T = Name]"
  const std::size_t begin = function.find("T = "), end = std::min(function.find(';'), function.rfind(']'));
  if (begin == function.npos || end == function.npos) return function;
  return function.substr(begin + 4, end - begin - 4);
}

/// What tells the types of policies apart: their names, also across shared libraries. In anonymous namespaces several files may
/// have types of one name, so there the file counts too.
struct TypeName {
  std::string_view text;
  const void* file = nullptr;  ///< an address that no other file has; null for types that the whole program shares

  friend bool operator==(const TypeName&, const TypeName&) = default;
};
template <class P>
inline constexpr char AddressOf = 0;
template <class P>
TypeName type_of() {
  const std::string_view text = type_name<P>();
  return {text, text.find("anonymous") == text.npos ? nullptr : &AddressOf<P>};
}

}  // namespace kvc::inline KVC_ABI
