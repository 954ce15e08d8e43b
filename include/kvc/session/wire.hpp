#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/error.hpp"
#include "kvc/shape.hpp"

// Numbers and lists as bytes. The bytes are those of memory: a machine that kvc compiles on is little-endian (kvc/abi.hpp).
namespace kvc::inline KVC_ABI::session {

/// Puts numbers and lists one behind the other.
class Packer {
 public:
  std::span<const std::byte> bytes() const { return bytes_; }

  void put_bytes(const void* data, std::size_t count) {
    const auto* from = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), from, from + count);
  }
  /// The type is named, so that nobody writes what another machine has in another size.
  template <class T>
  void put(std::type_identity_t<T> number) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    put_bytes(&number, sizeof(T));
  }
  void put_flag(bool flag) { put<std::uint8_t>(flag ? 1 : 0); }
  void put_size(std::size_t size) { put<std::uint64_t>(size == static_cast<std::size_t>(-1) ? Endless : size); }
  void put_text(std::string_view text) {
    put_size(text.size());
    put_bytes(text.data(), text.size());
  }
  /// The elements, whose number is known from elsewhere.
  template <class T>
  void put_list(std::span<const T> list) {
    put_bytes(list.data(), list.size_bytes());
  }

  static constexpr std::uint64_t Endless = ~std::uint64_t{0};

 private:
  std::vector<std::byte> bytes_;
};

/// Takes them out again. What is not there, or cannot be, is Error(bad_file).
class Unpacker {
 public:
  /// `where` completes "load: … is damaged".
  Unpacker(std::span<const std::byte> bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {}

  std::size_t left() const { return bytes_.size(); }
  void move_to(std::string where) { where_ = std::move(where); }
  const std::string& where() const { return where_; }

  [[noreturn, gnu::cold]] void damaged(std::initializer_list<Fragment> what) const {
    fail(ErrorCode::bad_file, {"load: ", where_, " is damaged: ", joined(what)});
  }

  std::span<const std::byte> take(std::size_t count) {
    if (count > left()) damaged({count, " bytes should follow, but there are ", left()});
    const auto taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }
  template <class T>
  T get() {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    T number;
    std::memcpy(&number, take(sizeof(T)).data(), sizeof(T));
    return number;
  }
  bool flag() {
    const auto byte = get<std::uint8_t>();
    if (byte > 1) damaged({"a flag is ", byte, ", neither 0 nor 1"});
    return byte != 0;
  }
  /// A number of at most `most`; `what` names it.
  std::size_t size(std::size_t most, const char* what) {
    const auto size = get<std::uint64_t>();
    if (size > most) damaged({what, " is ", size, "; it can be ", most, " at most"});
    return static_cast<std::size_t>(size);
  }
  /// A number of any size; the largest of all means that there is no limit.
  std::size_t limit(const char* what) {
    const auto size = get<std::uint64_t>();
    constexpr auto Most = std::numeric_limits<std::size_t>::max();
    if (size == Packer::Endless) return Most;
    if (size >= Most) damaged({what, " is ", size, ", more than this machine can count"});
    return static_cast<std::size_t>(size);
  }
  std::string_view text() {
    const std::size_t length = size(left(), "the length of a text");
    const auto letters = take(length);
    return {reinterpret_cast<const char*>(letters.data()), length};
  }
  /// `count` elements. No more memory is taken than there are bytes.
  template <class T>
  std::vector<T> list(std::size_t count) {
    if (count > left() / sizeof(T)) damaged({count, " elements should follow, but there are ", left(), " bytes"});
    std::vector<T> list(count);
    const auto bytes = take(count * sizeof(T));
    if (count != 0) std::memcpy(list.data(), bytes.data(), bytes.size());
    return list;
  }
  /// Nothing may be left.
  void end() const {
    if (left() != 0) damaged({left(), " bytes are left over"});
  }

 private:
  std::span<const std::byte> bytes_;
  std::string where_;
};

}  // namespace kvc::inline KVC_ABI::session
