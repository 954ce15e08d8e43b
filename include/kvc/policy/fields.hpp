#pragma once
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

// What a session saves of a policy's memory. A State, or a Slot, declares its fields once, and they are saved and loaded in this
// order (std::tie needs <tuple>):
//
//   struct State {
//     std::vector<float> queries;
//     std::size_t slots = 0;
//     auto fields() { return std::tie(queries, slots); }
//   };
//
// A field is a number, a bool, an enumeration, something that declares fields itself, or a std::vector or std::array of these.
// Whole numbers take eight bytes each in a file, so that it does not matter how wide the machine's are.

/// Where the fields of a policy's memory go to, or come from.
class Fields {
 public:
  virtual ~Fields() = default;
  /// Whether fields are loaded; otherwise they are saved.
  virtual bool loads() const = 0;
  /// Moves bytes out of `data`, or into it. Throws Error where a file has no more.
  virtual void move(void* data, std::size_t bytes) = 0;
  /// The bytes that a file still has: a list cannot be longer. Only while fields are loaded.
  virtual std::size_t left() const = 0;
  /// Throws Error: what was loaded cannot be. `what` completes "the memory of the policy has …".
  [[noreturn]] virtual void refuse(const char* what) const = 0;
};

/// A Slot or State that says what there is to save.
template <class T>
concept HasFields = requires(T& value) {
  value.fields();
};

namespace detail {

/// Numbers whose bytes are the same on all machines that the library knows.
template <class T>
concept FixedNumber = std::floating_point<T> ||(std::integral<T> && !std::same_as<T, bool> && sizeof(T) <= 2) ||
                      std::same_as<T, std::int32_t> || std::same_as<T, std::uint32_t>;

template <class T>
void exchange(Fields& fields, T& value);

template <std::integral T>
void exchange_number(Fields& fields, T& value) {
  using Wide = std::conditional_t<std::signed_integral<T>, std::int64_t, std::uint64_t>;
  auto wide = static_cast<Wide>(value);
  fields.move(&wide, sizeof(wide));
  if (!fields.loads()) return;
  value = static_cast<T>(wide);
  if (static_cast<Wide>(value) != wide) fields.refuse("a number that is too large for its field");
}

template <class T>
void exchange_list(Fields& fields, std::vector<T>& list) {
  static_assert(!std::same_as<T, bool>, "fields(): a std::vector<bool> cannot be saved; use std::vector<std::uint8_t>");
  std::size_t size = list.size();
  exchange_number(fields, size);
  if (fields.loads()) {
    // Every element takes a byte at least.
    if (size > fields.left() / (FixedNumber<T> ? sizeof(T) : 1)) fields.refuse("a list that is longer than the file");
    list.resize(size);
  }
  if constexpr (FixedNumber<T>) {
    if (size != 0) fields.move(list.data(), size * sizeof(T));
  } else {
    for (T& element : list) exchange(fields, element);
  }
}
template <class T, std::size_t Size>
void exchange_list(Fields& fields, std::array<T, Size>& list) {
  for (T& element : list) exchange(fields, element);
}

template <class T>
concept IsList = requires(Fields& fields, T& list) {
  exchange_list(fields, list);
};

/// Saves or loads one field.
template <class T>
void exchange(Fields& fields, T& value) {
  if constexpr (std::same_as<T, bool>) {
    std::uint8_t byte = value ? 1 : 0;
    fields.move(&byte, 1);
    if (fields.loads() && byte > 1) fields.refuse("a bool that is neither true nor false");
    value = byte != 0;
  } else if constexpr (std::is_enum_v<T>) {
    auto number = static_cast<std::underlying_type_t<T>>(value);
    exchange_number(fields, number);
    value = static_cast<T>(number);
  } else if constexpr (std::integral<T>) {
    exchange_number(fields, value);
  } else if constexpr (std::floating_point<T>) {
    fields.move(&value, sizeof(T));
  } else if constexpr (HasFields<T>) {
    std::apply([&](auto&... field) { (exchange(fields, field), ...); }, value.fields());
  } else {
    static_assert(IsList<T>,
                  "fields(): a field is a number, a bool, an enumeration, a std::vector or std::array of "
                  "these, or a struct that declares fields() itself");
    exchange_list(fields, value);
  }
}

}  // namespace detail

}  // namespace kvc::inline KVC_ABI
