#pragma once
#include <cctype>
#include <charconv>
#include <cstddef>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace support {

/// A JSON value of the reference files. Asking for another type or an absent key throws, which fails the test.
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json, std::less<>>;

  static Json parse(std::string_view text);
  static Json load(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot open " + path);
    std::ostringstream text;
    text << file.rdbuf();
    return parse(text.str());
  }

  const Json& operator[](std::string_view key) const {
    const auto& object = std::get<Object>(value_);
    const auto found = object.find(key);
    if (found == object.end()) throw std::runtime_error("no key " + std::string(key));
    return found->second;
  }
  const Json& operator[](std::size_t index) const { return array().at(index); }
  bool has(std::string_view key) const {
    const auto* object = std::get_if<Object>(&value_);
    return object && object->find(key) != object->end();
  }

  const Array& array() const { return std::get<Array>(value_); }
  const Object& object() const { return std::get<Object>(value_); }
  const std::string& text() const { return std::get<std::string>(value_); }
  double number() const { return std::get<double>(value_); }
  bool boolean() const { return std::get<bool>(value_); }
  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  std::size_t size() const { return array().size(); }

  /// An array of numbers.
  template <class T>
  std::vector<T> numbers() const {
    std::vector<T> result;
    for (const Json& item : array()) result.push_back(static_cast<T>(item.number()));
    return result;
  }

 private:
  friend class JsonParser;
  std::variant<std::monostate, bool, double, std::string, Array, Object> value_;
};

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json parse_document() {
    Json document = parse_value();
    skip_blanks();
    if (position_ != text_.size()) refuse("text after the value");
    return document;
  }

 private:
  [[noreturn]] void refuse(const std::string& reason) const {
    throw std::runtime_error("JSON, byte " + std::to_string(position_) + ": " + reason);
  }

  void skip_blanks() {
    while (position_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[position_]))) ++position_;
  }

  char peek() {
    skip_blanks();
    if (position_ == text_.size()) refuse("unexpected end");
    return text_[position_];
  }

  bool accept(char wanted) {
    if (peek() != wanted) return false;
    ++position_;
    return true;
  }

  void expect(char wanted) {
    if (!accept(wanted)) refuse(std::string("expected ") + wanted);
  }

  Json parse_value() {
    Json json;
    switch (peek()) {
      case '{':
        json.value_ = parse_object();
        break;
      case '[':
        json.value_ = parse_array();
        break;
      case '"':
        json.value_ = parse_string();
        break;
      case 't':
        json.value_ = parse_word("true"), json.value_ = true;
        break;
      case 'f':
        json.value_ = parse_word("false"), json.value_ = false;
        break;
      case 'n':
        json.value_ = parse_word("null");
        break;
      default:
        json.value_ = parse_number();
    }
    return json;
  }

  std::monostate parse_word(std::string_view word) {
    if (!text_.substr(position_).starts_with(word)) refuse("unknown word");
    position_ += word.size();
    return {};
  }

  Json::Object parse_object() {
    Json::Object object;
    expect('{');
    if (accept('}')) return object;
    do {
      if (peek() != '"') refuse("expected a key");
      std::string key = parse_string();
      expect(':');
      object.insert_or_assign(std::move(key), parse_value());
    } while (accept(','));
    expect('}');
    return object;
  }

  Json::Array parse_array() {
    Json::Array array;
    expect('[');
    if (accept(']')) return array;
    do array.push_back(parse_value());
    while (accept(','));
    expect(']');
    return array;
  }

  double parse_number() {
    double number = 0;
    const auto [end, error] = std::from_chars(text_.data() + position_, text_.data() + text_.size(), number);
    if (error != std::errc()) refuse("expected a value");
    position_ = static_cast<std::size_t>(end - text_.data());
    return number;
  }

  char32_t parse_four_hex_digits() {
    unsigned code = 0;
    const char* begin = text_.data() + position_;
    if (text_.size() - position_ < 4 || std::from_chars(begin, begin + 4, code, 16).ptr != begin + 4)
      refuse("expected four hexadecimal digits");
    position_ += 4;
    return code;
  }

  char32_t parse_code_point() {
    const char32_t first = parse_four_hex_digits();
    const bool pair = first >= 0xD800 && first < 0xDC00 && text_.substr(position_).starts_with("\\u");
    if (!pair) return first;
    position_ += 2;
    return 0x10000 + ((first - 0xD800) << 10) + (parse_four_hex_digits() - 0xDC00);
  }

  static void append_utf8(std::string& out, char32_t code) {
    auto put = [&](char32_t byte) { out.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
    const int tail = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr char32_t Leads[] = {0, 0xC0, 0xE0, 0xF0};
    put(Leads[tail] | code >> (6 * tail));
    for (int i = tail - 1; i >= 0; --i) put(0x80 | ((code >> (6 * i)) & 0x3F));
  }

  std::string parse_string() {
    std::string string;
    expect('"');
    while (true) {
      if (position_ == text_.size()) refuse("unterminated string");
      const char character = text_[position_++];
      if (character == '"') return string;
      if (character != '\\') {
        string.push_back(character);
        continue;
      }
      if (position_ == text_.size()) refuse("unterminated escape");
      const char escape = text_[position_++];
      constexpr std::string_view Names = "\"\\/bfnrt", Meanings = "\"\\/\b\f\n\r\t";
      if (escape == 'u')
        append_utf8(string, parse_code_point());
      else if (const std::size_t index = Names.find(escape); index != Names.npos)
        string.push_back(Meanings[index]);
      else
        refuse("unknown escape");
    }
  }

  std::string_view text_;
  std::size_t position_ = 0;
};

inline Json Json::parse(std::string_view text) {
  return JsonParser(text).parse_document();
}

}  // namespace support
