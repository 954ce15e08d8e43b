#pragma once
#include <algorithm>
#include <charconv>
#include <cstddef>
#include <initializer_list>
#include <limits>
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

  std::vector<std::shared_ptr<const Part>> stages() const {
    check_parentheses();
    std::vector<std::shared_ptr<const Part>> all;
    for (const std::string_view stage : split(text_, '|')) all.push_back(std::make_shared<const Part>(layered(stage)));
    return all;
  }

 private:
  static constexpr std::size_t Deepest = 8;  ///< so many policies may stand one inside the other

  /// A stage with the layers that it is limited to.
  Part layered(std::string_view stage) const {
    if (stage.empty() || stage.front() != '[') return part(stage, 0);
    const std::size_t end = stage.find(']');
    if (end == std::string_view::npos)
      complain(ErrorCode::invalid_argument, {"a ] is missing behind this ["}, stage.substr(0, 1));
    const std::string_view range = trimmed(stage.substr(1, end - 1));
    const std::size_t dash = range.find('-');
    const auto [first, last] = split_once(range, '-');
    Part::Layers layers{0, std::numeric_limits<std::size_t>::max()};
    const bool one = dash == std::string_view::npos;
    bool good = range.size() > 1 || one;
    if (!first.empty() || one) good = good && number(first, layers.first);
    if (!last.empty()) good = good && number(last, layers.last);
    if (one) layers.last = layers.first;
    if (!good || layers.first > layers.last)
      complain(ErrorCode::invalid_argument, {"layers are a number or a range, as in [5], [0-3] or [4-]"},
               stage.substr(0, end + 1));
    Part result = part(trimmed(stage.substr(end + 1)), 0);
    result.layers = layers;
    result.layers_text = joined({"[", range, "] "});
    return result;
  }

  Part part(std::string_view stage, std::size_t nesting) const {
    if (nesting > Deepest)
      complain(ErrorCode::invalid_argument, {"policies inside policies are nested too deep"}, stage);
    stage = without_parentheses(stage);
    const std::string_view name = split_once(stage, ':').first;
    if (name.empty()) complain(ErrorCode::invalid_argument, {"a policy is missing"}, stage, "", registry_.names());
    Part part;
    part.entry = registry_.find(name);
    if (!part.entry) complain(ErrorCode::unknown_name, {"unknown policy '", name, "'"}, name, name, registry_.names());
    part.policy = part.entry->copy(part.entry->start.get());
    if (stage.find(':') == std::string_view::npos) return part;

    // Policies inside this one come first: words that it does not know may be theirs.
    const std::vector<std::string_view> pieces = split(split_once(stage, ':').second, ',');
    for (const std::string_view piece : pieces)
      if (const ParameterRow* row = find_row(*part.entry, split_once(piece, '=').first); row && is_inner(*row))
        read_inner(piece, *row, part, nesting);
    for (const std::string_view piece : pieces) {
      const ParameterRow* row = find_row(*part.entry, split_once(piece, '=').first);
      if (!row || !is_inner(*row)) read(piece, part);
    }
    order_words(part, pieces);
    return part;
  }

  static bool is_inner(const ParameterRow& row) { return is_member(row) || is_members(row); }

  /// Reads a word whose value is a policy, or several.
  void read_inner(std::string_view piece, const ParameterRow& row, Part& part, std::size_t nesting) const {
    refuse_repetition(part, row, piece);
    const auto [key, value] = split_once(piece, '=');
    Part::Inner inner{&row, {}};
    const std::vector<std::string_view> texts = is_members(row) ? split(value, '+') : std::vector{value};
    for (const std::string_view text : texts) {
      if (text.empty()) complain_of_value(part, row, piece, value);
      inner.parts.push_back(this->part(text, nesting + 1));
    }
    part.inner.push_back(std::move(inner));
    part.words.push_back({std::string(key), std::string(value)});
  }

  /// Reads another word.
  void read(std::string_view piece, Part& part) const {
    const auto [key, value] = split_once(piece, '=');
    const ParameterRow* row = find_row(*part.entry, key);
    if (!row) {
      if (Part* inner = inner_with(part, key)) {
        read(piece, *inner);
        part.words.push_back({std::string(key), std::string(value)});
        return;
      }
      complain_of_name(part, piece, key);
    }
    refuse_repetition(part, *row, piece);
    if (!reads(*row, without_parentheses(value), part.policy.get())) complain_of_value(part, *row, piece, value);
    part.words.push_back({std::string(key), std::string(value)});
  }

  /// The only policy inside this one, if it has a parameter of that name. Where the text does not name that policy, it is the
  /// one that is there from the start.
  Part* inner_with(Part& part, std::string_view name) const {
    const ParameterRow* only = nullptr;
    for (const ParameterRow& row : part.entry->rows) {
      if (!is_inner(row)) continue;
      if (only || !is_member(row)) return nullptr;
      only = &row;
    }
    if (!only) return nullptr;
    if (part.inner.empty()) {
      const auto& member =
          *reinterpret_cast<const Member*>(static_cast<const std::byte*>(part.policy.get()) + only->offset);
      const PolicyEntry* entry = member ? registry_.find(member.stage()) : nullptr;
      if (!entry || !find_row(*entry, name)) return nullptr;
      Part inner;
      inner.entry = entry;
      inner.policy = entry->copy(entry->policy(member.stage()));
      part.inner.push_back({only, {}});
      part.inner.back().parts.push_back(std::move(inner));
    }
    Part& inner = part.inner.front().parts.front();
    return find_row(*inner.entry, name) ? &inner : nullptr;
  }

  static const ParameterRow* find_row(const PolicyEntry& entry, std::string_view name) {
    for (const ParameterRow& row : entry.rows)
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
  static bool number(std::string_view text, std::size_t& value) {
    const auto read = read_number<std::size_t>(text);
    value = read.value_or(0);
    return read.has_value();
  }
  /// Brings the words back into the order of the text.
  static void order_words(Part& part, const std::vector<std::string_view>& pieces) {
    std::vector<Word> ordered;
    for (const std::string_view piece : pieces) ordered.push_back(*part.word(split_once(piece, '=').first));
    part.words = std::move(ordered);
  }

  void refuse_repetition(const Part& part, const ParameterRow& row, std::string_view piece) const {
    for (const ParameterRow& other : part.entry->rows) {
      if (group_of(other) != group_of(row) || !part.word(other.name)) continue;
      if (std::string_view(row.name) == other.name)
        complain(ErrorCode::invalid_argument, {"'", row.name, "' is given twice"}, piece);
      complain(ErrorCode::invalid_argument,
               {"'", other.name, "' and '", row.name, "' both set the ", group_of(row), " of ", part.entry->name},
               piece);
    }
  }

  void check_parentheses() const {
    std::vector<std::size_t> open;
    for (std::size_t i = 0; i < text_.size(); ++i) {
      if (text_[i] == '(') open.push_back(i);
      if (text_[i] != ')') continue;
      if (open.empty()) complain(ErrorCode::invalid_argument, {"a ( is missing before this )"}, text_.substr(i, 1));
      open.pop_back();
    }
    if (!open.empty())
      complain(ErrorCode::invalid_argument, {"a ) is missing behind this ("}, text_.substr(open.back(), 1));
  }

  [[noreturn]] void complain_of_name(const Part& part, std::string_view piece, std::string_view key) const {
    std::vector<std::string> known;
    for (const ParameterRow& row : part.entry->rows) {
      known.push_back(row.name);
      if (is_members(row) && registry_.find(split_once(key, ':').first))
        complain(ErrorCode::unknown_name,
                 {part.entry->name, " has no parameter '", key, "'; policies are joined by +, as in ", row.name,
                  "=knorm+", split_once(key, ':').first},
                 key);
    }
    for (const Part::Inner& inner : part.inner)
      for (const ParameterRow& row : inner.parts.front().entry->rows)
        if (!is_members(*inner.row) && !find_row(*part.entry, row.name)) known.push_back(row.name);
    complain(ErrorCode::unknown_name, {part.entry->name, " has no parameter '", key, "'"}, key.empty() ? piece : key,
             key, known);
  }
  [[noreturn]] void complain_of_value(const Part& part, const ParameterRow& row, std::string_view piece,
                                      std::string_view value) const {
    complain(ErrorCode::invalid_argument,
             {"'", row.name, "' of ", part.entry->name, " takes ", row.type->expected(), ", got '", value, "'"},
             value.empty() ? piece : value);
  }
  [[noreturn]] void complain(ErrorCode code, std::initializer_list<Fragment> what, std::string_view where,
                             std::string_view wrong, const std::vector<std::string>& known) const {
    complain(code, {joined(what), "; ", suggestion(wrong, known)}, where);
  }
  [[noreturn]] void complain(ErrorCode code, std::initializer_list<Fragment> what, std::string_view where) const {
    const auto column = static_cast<std::size_t>(where.data() - text_.data());
    std::string quoted(text_);
    std::replace_if(quoted.begin(), quoted.end(), is_space, ' ');  // one line
    fail(code, {joined(what), "\n  ", quoted, "\n  ", std::string(column, ' '),
                std::string(std::max<std::size_t>(1, where.size()), '^')});
  }

  std::string_view text_;
  const Registry& registry_ = Registry::instance();
};

}  // namespace kvc::inline KVC_ABI::detail
