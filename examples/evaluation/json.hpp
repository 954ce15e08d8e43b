#pragma once
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace evaluation {

/// A JSON value. Asking for another type or an absent key throws kvc::Error (bad_file).
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json, std::less<>>;

  Json() = default;                                    ///< null
  Json(double number) : value_(number) {}              // NOLINT: values become JSON implicitly
  Json(std::string text) : value_(std::move(text)) {}  // NOLINT
  Json(Array array) : value_(std::move(array)) {}      // NOLINT
  Json(Object object) : value_(std::move(object)) {}   // NOLINT

  /// Throws kvc::Error (bad_file) with the byte at which the text stops being JSON.
  static Json parse(std::string_view text);
  /// Reads a file; complaints name it, and `what` it is for.
  static Json load(const std::string& path, const std::string& what = "the data");

  const Json& operator[](std::string_view key) const;
  const Json& operator[](std::size_t index) const { return array().at(index); }
  bool has(std::string_view key) const;
  const Array& array() const;
  std::size_t size() const { return array().size(); }
  const std::string& text() const;
  double number() const;
  bool boolean() const;
  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  /// An array of numbers, converted one by one.
  template <class T>
  std::vector<T> numbers() const {
    std::vector<T> result;
    for (const Json& item : array()) result.push_back(static_cast<T>(item.number()));
    return result;
  }
  /// An array of whole numbers, e.g. token ids.
  std::vector<int> integers() const;

 private:
  std::variant<std::monostate, bool, double, std::string, Array, Object> value_;
  friend class JsonParser;
};

/// `text` as a JSON string, quotes included. Bytes that are not UTF-8 become U+FFFD.
std::string quoted(std::string_view text);
/// A number as JSON; null for what JSON cannot say (NaN, infinity).
std::string json_number(double number);

}  // namespace evaluation
