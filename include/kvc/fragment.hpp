#pragma once
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <string_view>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI {

/// A text or a number that joined() and fail() put into a message. It refers to the text and needs no memory of its own, so
/// the place that makes one only stores a pointer or a number; the code that builds strings stands in joined() alone.
class Fragment {
 public:
  constexpr Fragment(const char* text) : Fragment(std::string_view(text)) {}
  constexpr Fragment(std::string_view text) : text_(text.data()), size_(static_cast<std::uint32_t>(text.size())) {}
  constexpr Fragment(const std::string& text) : Fragment(std::string_view(text)) {}
  template <std::unsigned_integral Number>
  constexpr Fragment(Number number) : natural_(number), kind_(Kind::natural) {}
  template <std::signed_integral Number>
  constexpr Fragment(Number number) : integer_(number), kind_(Kind::integer) {}
  template <std::floating_point Number>
  constexpr Fragment(Number number) : real_(static_cast<double>(number)), kind_(Kind::real) {}
  Fragment(bool) = delete;  // neither these nor a letter are numbers
  Fragment(char) = delete;

  /// Numbers are written as std::to_string() writes them.
  void append_to(std::string& message) const {
    char digits[320];  // the largest double has 309 before its point
    int count = 0;
    switch (kind_) {
      case Kind::text:
        message.append(text_, size_);
        return;
      case Kind::natural:
        count = std::snprintf(digits, sizeof(digits), "%llu", natural_);
        break;
      case Kind::integer:
        count = std::snprintf(digits, sizeof(digits), "%lld", integer_);
        break;
      case Kind::real:
        count = std::snprintf(digits, sizeof(digits), "%f", real_);
        break;
    }
    message.append(digits, static_cast<std::size_t>(count));
  }

 private:
  enum class Kind : std::uint32_t { text, natural, integer, real };

  union {
    const char* text_;
    unsigned long long natural_;
    long long integer_;
    double real_;
  };
  std::uint32_t size_ = 0;  // of the text
  Kind kind_ = Kind::text;
};

/// The fragments, one behind the other: joined({"rows of ", dim, " floats"}).
[[gnu::cold, gnu::noinline]] inline std::string joined(std::initializer_list<Fragment> fragments) {
  std::string message;
  for (const Fragment& fragment : fragments) fragment.append_to(message);
  return message;
}

}  // namespace kvc::inline KVC_ABI
