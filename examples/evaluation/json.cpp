#include "json.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "files.hpp"
#include "kvc/error.hpp"

namespace evaluation {
namespace {

[[noreturn]] void refuse(const std::string& sentence) {
  kvc::fail(kvc::ErrorCode::bad_file, "JSON: " + sentence);
}

template <class T, class Value>
const T& get(const Value& value, const char* wanted) {
  const T* found = std::get_if<T>(&value);
  if (!found) refuse(fmt::format("expected {}", wanted));
  return *found;
}

/// Bytes of the UTF-8 sequence that `text` starts with; 0: none.
std::size_t sequence_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  const std::size_t length = lead < 0x80   ? 1
                             : lead < 0xC2 ? 0
                             : lead < 0xE0 ? 2
                             : lead < 0xF0 ? 3
                             : lead < 0xF5 ? 4
                                           : 0;
  if (length == 0 || length > text.size()) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  const bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xED && byte(1) >= 0xA0, too_large = lead == 0xF4 && byte(1) >= 0x90;
  return overlong || surrogate || too_large ? 0 : length;
}

void append_utf8(std::string& out, std::uint32_t code) {
  const int tail = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  constexpr std::uint32_t Leads[] = {0, 0xC0, 0xE0, 0xF0};
  const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  put(Leads[tail] | code >> (6 * tail));
  for (int i = tail - 1; i >= 0; --i) put(0x80 | ((code >> (6 * i)) & 0x3F));
}

}  // namespace

/// A recursive-descent parser.
class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json document() {
    Json json = value(0);
    if (!at_end()) stop("text after the value");
    return json;
  }

 private:
  /// Deeper than any file of ours, shallow enough for every stack.
  static constexpr int DeepestNesting = 100;

  [[noreturn]] void stop(const std::string& reason) const { refuse(fmt::format("byte {}: {}", position_, reason)); }

  bool at_end() {
    while (position_ < text_.size() && std::string_view(" \t\r\n").find(text_[position_]) != std::string_view::npos)
      ++position_;
    return position_ == text_.size();
  }
  char peek() {
    if (at_end()) stop("unexpected end");
    return text_[position_];
  }
  bool accept(char wanted) {
    if (peek() != wanted) return false;
    ++position_;
    return true;
  }
  void expect(char wanted) {
    if (!accept(wanted)) stop(fmt::format("expected '{}'", wanted));
  }

  Json value(int depth) {
    if (depth > DeepestNesting) stop("nested too deeply");
    Json json;
    switch (peek()) {
      case '{':
        json.value_ = object(depth);
        break;
      case '[':
        json.value_ = array(depth);
        break;
      case '"':
        json.value_ = string();
        break;
      case 't':
        word("true"), json.value_ = true;
        break;
      case 'f':
        word("false"), json.value_ = false;
        break;
      case 'n':
        word("null");
        break;
      default:
        json.value_ = number();
    }
    return json;
  }

  void word(std::string_view wanted) {
    if (!text_.substr(position_).starts_with(wanted)) stop("unknown word");
    position_ += wanted.size();
  }

  Json::Object object(int depth) {
    Json::Object members;
    expect('{');
    if (accept('}')) return members;
    do {
      if (peek() != '"') stop("expected a key");
      std::string key = string();
      expect(':');
      members.insert_or_assign(std::move(key), value(depth + 1));
    } while (accept(','));
    expect('}');
    return members;
  }

  Json::Array array(int depth) {
    Json::Array items;
    expect('[');
    if (accept(']')) return items;
    do items.push_back(value(depth + 1));
    while (accept(','));
    expect(']');
    return items;
  }

  double number() {
    double result = 0;
    const auto [end, error] = std::from_chars(text_.data() + position_, text_.data() + text_.size(), result);
    const char first = text_[position_];
    if (error != std::errc() || !(first == '-' || (first >= '0' && first <= '9'))) stop("expected a value");
    position_ = static_cast<std::size_t>(end - text_.data());
    return result;
  }

  std::uint32_t four_hex_digits() {
    std::uint32_t code = 0;
    const char* begin = text_.data() + position_;
    if (text_.size() - position_ < 4 || std::from_chars(begin, begin + 4, code, 16).ptr != begin + 4)
      stop("expected four hexadecimal digits");
    position_ += 4;
    return code;
  }

  std::uint32_t code_point() {
    const std::uint32_t first = four_hex_digits();
    if (first < 0xD800 || first >= 0xE000) return first;
    if (first >= 0xDC00 || !text_.substr(position_).starts_with("\\u")) stop("half a surrogate pair");
    position_ += 2;
    const std::uint32_t second = four_hex_digits();
    if (second < 0xDC00 || second >= 0xE000) stop("half a surrogate pair");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  std::string string() {
    std::string result;
    expect('"');
    while (true) {
      if (position_ == text_.size()) stop("unterminated string");
      const char character = text_[position_++];
      if (character == '"') return result;
      if (character == '\\')
        escape(result);
      else
        result.push_back(character);
    }
  }

  void escape(std::string& result) {
    if (position_ == text_.size()) stop("unterminated escape");
    constexpr std::string_view Names = "\"\\/bfnrt", Meanings = "\"\\/\b\f\n\r\t";
    const char name = text_[position_++];
    if (name == 'u') return append_utf8(result, code_point());
    const std::size_t index = Names.find(name);
    if (index == Names.npos) stop("unknown escape");
    result.push_back(Meanings[index]);
  }

  std::string_view text_;
  std::size_t position_ = 0;
};

Json Json::parse(std::string_view text) {
  return JsonParser(text).document();
}

Json Json::load(const std::string& path, const std::string& what) {
  const std::string text = read_file(path, what);
  try {
    return parse(text);
  } catch (const kvc::Error& error) {
    kvc::fail(error.code(), fmt::format("{}: {} is not readable {}", what, path, error.what()));
  }
}

const Json& Json::operator[](std::string_view key) const {
  const Object& members = get<Object>(value_, "an object");
  const auto found = members.find(key);
  if (found == members.end()) refuse(fmt::format("the key '{}' is missing", key));
  return found->second;
}

bool Json::has(std::string_view key) const {
  const auto* members = std::get_if<Object>(&value_);
  return members && members->find(key) != members->end();
}

const Json::Array& Json::array() const {
  return get<Array>(value_, "an array");
}
const std::string& Json::text() const {
  return get<std::string>(value_, "a string");
}
double Json::number() const {
  return get<double>(value_, "a number");
}
bool Json::boolean() const { return get<bool>(value_, "true or false"); }

std::vector<int> Json::integers() const {
  std::vector<int> result;
  for (const Json& item : array()) {
    const double number = item.number();
    constexpr double Largest = std::numeric_limits<int>::max();
    if (std::nearbyint(number) != number || std::abs(number) > Largest)
      refuse(fmt::format("expected whole numbers, got {}", number));
    result.push_back(static_cast<int>(number));
  }
  return result;
}

std::string quoted(std::string_view text) {
  std::string result = "\"";
  while (!text.empty()) {
    const std::size_t length = sequence_length(text);
    const char first = text.front();
    if (length == 0)
      result += "\\ufffd";
    else if (first == '"' || first == '\\')
      result += {'\\', first};
    else if (first == '\n')
      result += "\\n";
    else if (static_cast<unsigned char>(first) < 0x20)
      result += fmt::format("\\u{:04x}", static_cast<unsigned>(first));
    else
      result += text.substr(0, length);
    text.remove_prefix(std::max<std::size_t>(1, length));
  }
  return result + "\"";
}

std::string json_number(double number) {
  return std::isfinite(number) ? fmt::format("{}", number) : "null";
}

}  // namespace evaluation
