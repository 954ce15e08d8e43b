#pragma once
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// A number that differs where parameters differ: by it a session knows a policy again, without the code that writes parameters
/// as text. The same on every machine.
class Fingerprint {
 public:
  std::uint64_t value() const { return value_; }

  template <class T>
  requires std::is_arithmetic_v<T> || std::is_enum_v<T>
  void add(T number) {
    if constexpr (std::floating_point<T>)
      mix(std::bit_cast<std::uint64_t>(static_cast<double>(number)));
    else if constexpr (std::unsigned_integral<T>)  // the largest number means "no limit", however wide it is
      mix(sizeof(T) >= 4 && number == static_cast<T>(-1) ? ~std::uint64_t{0} : static_cast<std::uint64_t>(number));
    else
      mix(static_cast<std::uint64_t>(number));
  }
  void add(std::string_view text) {
    mix(text.size());
    for (const char letter : text) mix(static_cast<unsigned char>(letter));
  }
  /// Whatever says itself what it is.
  template <class T>
  requires requires(const T& value, Fingerprint& all) { value.add_to(all); }
  void add(const T& value) { value.add_to(*this); }
  template <class T>
  void add(const std::optional<T>& value) {
    mix(value.has_value());
    if (value) add_if_known(*value);
  }
  template <class T>
  void add(const std::vector<T>& list) {
    mix(list.size());
    for (const T& each : list) add_if_known(each);
  }
  template <class T>
  void add(const std::shared_ptr<T>& value) {
    mix(value != nullptr);
    if (value) add_if_known(*value);
  }

 private:
  template <class T>
  void add_if_known(const T& value) {
    if constexpr (requires { add(value); }) add(value);
  }
  void mix(std::uint64_t number) {
    value_ = (value_ ^ number) * 0x9E3779B97F4A7C15u;
    value_ ^= value_ >> 29;
  }

  std::uint64_t value_ = 0x6B7663u;
};

/// A type that a fingerprint takes in.
template <class T>
concept Fingerprinted = requires(const T& value, Fingerprint& all) {
  all.add(value);
};

}  // namespace kvc::inline KVC_ABI
