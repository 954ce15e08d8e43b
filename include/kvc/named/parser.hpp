#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/named/part.hpp"

namespace kvc::inline KVC_ABI::detail {

/// Reads a policy text. Every complaint quotes the text and points at the part that is wrong.
class PolicyParser {
 public:
  explicit PolicyParser(std::string_view text) : text_(text) {}

  std::vector<std::shared_ptr<const Part>> stages() {
    check_parentheses();
    std::vector<std::shared_ptr<const Part>> all;
    for (const std::string_view stage : split(text_, '|')) all.push_back(part(stage));
    return all;
  }

 private:
  std::shared_ptr<const Part> part(std::string_view stage) {
    const std::size_t colon = std::min(stage.find(':'), stage.size());
    const std::string_view name = trimmed(stage.substr(0, colon));
    if (name.empty()) complain(ErrorCode::invalid_argument, "a policy is missing", stage, "", registry_.names());
    std::vector<std::string_view> pieces;
    if (colon < stage.size()) pieces = split(stage.substr(colon + 1), ',');

    Part part;
    part.entry = &entry(name, pieces);
    const std::shared_ptr<void> policy = part.entry->copy(part.entry->start.get());
    for (const std::string_view piece : pieces)
      if (key_and_value(piece).first != "base" || part.entry->base.empty()) read(piece, part, policy.get());
    part.policy = policy;
    return std::make_shared<const Part>(std::move(part));
  }

  const PolicyEntry& entry(std::string_view name, const std::vector<std::string_view>& pieces) const {
    const PolicyEntry* found = registry_.find(name);
    if (!found)
      complain(ErrorCode::unknown_name, "unknown policy '" + std::string(name) + "'", name, name, registry_.names());
    const std::vector<std::string> bases = registry_.bases(name);
    for (const std::string_view piece : pieces) {
      const auto [key, value] = key_and_value(piece);
      if (key != "base" || bases.empty()) continue;
      if (const PolicyEntry* with_base = value.empty() ? nullptr : registry_.find(name, value)) return *with_base;
      complain(ErrorCode::unknown_name, "unknown base '" + std::string(value) + "' of " + std::string(name), piece,
               value, bases);
    }
    return *found;
  }

  /// Reads one word into `part`, and the data member that it names into `policy`.
  void read(std::string_view piece, Part& part, void* policy) const {
    const auto [key, value] = key_and_value(piece);
    const ParameterRow* row = find_row(part, key);
    if (!row) {
      std::vector<std::string> known;
      for (const ParameterRow& other : part.entry->rows) known.push_back(other.name);
      complain(ErrorCode::unknown_name, part.entry->name + " has no parameter '" + std::string(key) + "'",
               key.empty() ? piece : key, key, known);
    }
    refuse_repetition(part, *row, piece);
    if (!reads(*row, without_parentheses(value), policy))
      complain(ErrorCode::invalid_argument,
               "'" + std::string(key) + "' of " + part.entry->name + " takes " + row->type->expected() + ", got '" +
                   std::string(value) + "'",
               value.empty() ? piece : value);
    part.words.push_back({std::string(key), std::string(without_parentheses(value))});
  }

  static const ParameterRow* find_row(const Part& part, std::string_view name) {
    for (const ParameterRow& row : part.entry->rows)
      if (row.name == name) return &row;
    return nullptr;
  }
  /// Whether the row can be read from `value`. What is no data member waits for the defaults: it is only tried.
  static bool reads(const ParameterRow& row, std::string_view value, void* policy) {
    switch (row.kind) {
      case ParameterRow::Kind::member:
        return row.type->read(value, static_cast<std::byte*>(policy) + row.offset);
      case ParameterRow::Kind::setter:
        return row.set(nullptr, nullptr, value);
      case ParameterRow::Kind::keep:
        return KeptShare::parse(value).has_value();
      case ParameterRow::Kind::pyramid:
        return PyramidBeta::parse(value).has_value();
    }
    return false;
  }

  void refuse_repetition(const Part& part, const ParameterRow& row, std::string_view piece) const {
    for (const ParameterRow& other : part.entry->rows) {
      if (group_of(other) != group_of(row) || !part.word(other.name)) continue;
      const std::string name = row.name, same = other.name;
      complain(ErrorCode::invalid_argument,
               name == same ? "'" + name + "' is given twice"
                            : "'" + same + "' and '" + name + "' both set the " + std::string(group_of(row)) + " of " +
                                  part.entry->name,
               piece);
    }
  }

  void check_parentheses() const {
    std::vector<std::size_t> open;
    for (std::size_t i = 0; i < text_.size(); ++i) {
      if (text_[i] == '(') open.push_back(i);
      if (text_[i] != ')') continue;
      if (open.empty()) complain(ErrorCode::invalid_argument, "a ( is missing before this )", text_.substr(i, 1));
      open.pop_back();
    }
    if (!open.empty())
      complain(ErrorCode::invalid_argument, "a ) is missing behind this (", text_.substr(open.back(), 1));
  }

  [[noreturn]] void complain(ErrorCode code, const std::string& what, std::string_view where) const {
    const auto column = static_cast<std::size_t>(where.data() - text_.data());
    std::string quoted(text_);
    std::replace_if(
        quoted.begin(), quoted.end(), [](char letter) { return is_space(letter); }, ' ');
    fail(code, what + "\n  " + quoted + "\n  " + std::string(column, ' ') +
                   std::string(std::max<std::size_t>(1, where.size()), '^'));
  }
  [[noreturn]] void complain(ErrorCode code, const std::string& what, std::string_view where, std::string_view wrong,
                             const std::vector<std::string>& known) const {
    complain(code, what + "; " + suggestion(wrong, known), where);
  }

  /// The pieces between separators that stand in no parentheses, without the spaces around them.
  static std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> pieces;
    std::size_t begin = 0, depth = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      depth += text[i] == '(';
      depth -= text[i] == ')';
      if (text[i] != separator || depth != 0) continue;
      pieces.push_back(trimmed(text.substr(begin, i - begin)));
      begin = i + 1;
    }
    pieces.push_back(trimmed(text.substr(begin)));
    return pieces;
  }
  static std::pair<std::string_view, std::string_view> key_and_value(std::string_view piece) {
    const std::size_t equal = piece.find('=');
    if (equal == std::string_view::npos) return {piece, piece.substr(piece.size())};
    return {trimmed(piece.substr(0, equal)), trimmed(piece.substr(equal + 1))};
  }
  /// What stands between the parentheses around a value, or the value itself if there are none.
  static std::string_view without_parentheses(std::string_view value) {
    return value.size() >= 2 && value.front() == '(' && closes(value) ? trimmed(value.substr(1, value.size() - 2))
                                                                      : value;
  }
  /// Whether the first parenthesis is closed by the last letter.
  static bool closes(std::string_view value) {
    std::size_t depth = 0;
    for (std::size_t i = 0; i < value.size(); ++i) {
      depth += value[i] == '(';
      depth -= value[i] == ')';
      if (depth == 0) return i + 1 == value.size();
    }
    return false;
  }
  static std::string_view trimmed(std::string_view part) {
    while (!part.empty() && is_space(part.front())) part.remove_prefix(1);
    while (!part.empty() && is_space(part.back())) part.remove_suffix(1);
    return part;
  }
  static bool is_space(char letter) { return letter == ' ' || letter == '\t' || letter == '\n' || letter == '\r'; }

  std::string_view text_;
  const Registry& registry_ = Registry::instance();
};

}  // namespace kvc::inline KVC_ABI::detail
