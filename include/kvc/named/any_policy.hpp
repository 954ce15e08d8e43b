#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/named/built_in.hpp"
#include "kvc/policy/pipeline.hpp"

namespace kvc::inline KVC_ABI {

/// A policy, or a pipeline of policies, chosen at run time by a text:
///
///     stages | stage …     each stage     name:parameter=value,parameter=value
///
/// for example "snapkv:budget=1024,window=32 | kivi:bits=2" or "ada_kv:base=snapkv,budget=0.25". names() and describe()
/// say what exists. What was parsed runs as fast as the same policy named in C++.
class AnyPolicy {
 public:
  /// Throws Error (unknown_name or invalid_argument) that points at the wrong word and lists what could stand there.
  static AnyPolicy parse(std::string_view text) { return Parser(text).policy(); }

  /// Makes a policy of yours available to parse().
  template <Policy P>
  static void add(std::string name, std::string help, std::vector<Parameter<P>> parameters, P start = {}) {
    policies().add(std::make_unique<EntryOf<P>>(EntryName{.name = std::move(name), .help = std::move(help)},
                                                std::move(parameters), std::move(start)));
  }

  /// Every policy that parse() knows.
  static std::vector<std::string> names() { return policies().names(); }

  /// What a policy does and its parameters with defaults, a line each; `base` chooses among a decorator's.
  static std::string describe(std::string_view name, std::string_view base = "") {
    const Entry* entry = policies().find(name, base);
    if (!entry)
      fail(ErrorCode::unknown_name, "unknown policy '" + std::string(name) + "'; " + suggestion(name, names()));
    std::string text = entry->name() + ": " + entry->help() + "\n";
    if (!entry->base().empty()) text += line("base=" + entry->base(), joined(policies().bases(name)));
    for (const ParameterText& parameter : entry->parameters())
      text += line(parameter.name + "=" + parameter.fallback, parameter.help + " (" + parameter.expected + ")");
    return text;
  }

  /// Whether a stage takes a budget and none was given to it yet.
  bool wants_budget() const {
    for (const Part& part : parts_)
      if (part.accepts_budget() && !part.defaults.budget) return true;
    return false;
  }
  /// Gives `budget` to every stage that takes one and whose text says none.
  void set_default_budget(const Budget& budget) {
    for (Part& part : parts_)
      if (part.accepts_budget()) part.defaults.budget = budget;
  }
  /// Whether a stage must know the model's retrieval heads and was not told yet.
  bool wants_heads() const {
    for (const Part& part : parts_)
      if (part.accepts_heads() && !part.defaults.heads) return true;
    return false;
  }
  /// Gives `heads` to every stage that must know them and whose text names no table.
  void set_default_heads(const HeadTable& heads) {
    for (Part& part : parts_)
      if (part.accepts_heads()) part.defaults.heads = heads;
  }

  /// The stages, for KVCache and pipelines.
  Stages stages() const {
    Stages all;
    for (const Part& part : parts_) all.push_back(part.entry->make(part.words, part.defaults));
    return all;
  }

  /// A text that parse() reads as the same policy (unless a default was set that no text can say).
  std::string to_string() const {
    std::string text;
    for (const Part& part : parts_) text += (text.empty() ? "" : " | ") + part.to_string();
    return text;
  }

 private:
  struct Part {
    const Entry* entry = nullptr;
    std::vector<Word> words;
    Defaults defaults;  // for want of a word

    bool accepts_budget() const {
      if (!entry->takes_budget()) return false;
      for (const ParameterText& parameter : entry->parameters())
        for (const Word& word : words)
          if (parameter.sets_budget && parameter.name == word.name) return false;
      return true;
    }
    bool accepts_heads() const {
      return entry->takes_heads() &&
             std::none_of(words.begin(), words.end(), [](const Word& word) { return word.name == "heads"; });
    }
    std::string to_string() const {
      std::vector<std::string> all;
      if (!entry->base().empty()) all.push_back("base=" + entry->base());
      if (defaults.budget) all.push_back("budget=" + defaults.budget->to_string());
      for (const Word& word : words) all.push_back(word.value.empty() ? word.name : word.name + "=" + word.value);
      return all.empty() ? entry->name() : entry->name() + ":" + joined(all, ",");
    }
  };

  /// Reads a text; every complaint quotes it and points at the wrong part.
  class Parser {
   public:
    explicit Parser(std::string_view text) : text_(text) {}

    AnyPolicy policy() {
      AnyPolicy result;
      for (std::size_t begin = 0; begin <= text_.size();) {
        const std::size_t end = std::min(text_.find('|', begin), text_.size());
        result.parts_.push_back(part(trimmed(begin, end)));
        begin = end + 1;
      }
      return result;
    }

   private:
    Part part(std::string_view stage) {
      const std::size_t colon = std::min(stage.find(':'), stage.size());
      const std::string_view name = trimmed(stage.substr(0, colon));
      if (name.empty()) complain(ErrorCode::invalid_argument, "a policy is missing", stage, "", policies().names());
      std::vector<std::string_view> pieces;
      if (colon < stage.size()) pieces = split(stage.substr(colon + 1));

      Part part{.entry = entry(name, pieces), .words = {}, .defaults = {}};
      const std::vector<ParameterText> parameters = part.entry->parameters();
      for (const std::string_view piece : pieces)
        if (std::optional<Word> word = read(piece, *part.entry, parameters, part.words)) part.words.push_back(*word);
      refuse_two_budgets(part, parameters, pieces);
      return part;
    }

    /// The entry of a name, of a decorator with the base that one of the words names.
    const Entry* entry(std::string_view name, const std::vector<std::string_view>& pieces) {
      if (!policies().find(name))
        complain(ErrorCode::unknown_name, "unknown policy '" + std::string(name) + "'", name, name, policies().names());
      const std::vector<std::string> bases = policies().bases(name);
      if (bases.empty()) return policies().find(name);
      for (const std::string_view piece : pieces) {
        const auto [key, value] = key_and_value(piece);
        if (key != "base") continue;
        if (const Entry* found = value.empty() ? nullptr : policies().find(name, value)) return found;
        complain(ErrorCode::unknown_name, "unknown base '" + std::string(value) + "' of " + std::string(name), piece,
                 value, bases);
      }
      return policies().find(name);
    }

    /// One word; none for the base, which entry() has read.
    std::optional<Word> read(std::string_view piece, const Entry& entry, const std::vector<ParameterText>& parameters,
                             const std::vector<Word>& before) {
      const auto [key, value] = key_and_value(piece);
      if (key == "base" && !entry.base().empty()) return std::nullopt;
      std::vector<std::string> known;
      if (!entry.base().empty()) known.push_back("base");
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        known.push_back(parameters[i].name);
        if (key != parameters[i].name) continue;
        for (const Word& word : before)
          if (word.name == key) complain(ErrorCode::invalid_argument, "'" + word.name + "' is given twice", piece);
        if (!entry.reads(i, value))
          complain(ErrorCode::invalid_argument,
                   "'" + std::string(key) + "' of " + entry.name() + " takes " + parameters[i].expected + ", got '" +
                       std::string(value) + "'",
                   value.empty() ? piece : value);
        return Word{std::string(key), std::string(value)};
      }
      complain(ErrorCode::unknown_name, entry.name() + " has no parameter '" + std::string(key) + "'",
               key.empty() ? piece : key, key, known);
    }

    void refuse_two_budgets(const Part& part, const std::vector<ParameterText>& parameters,
                            const std::vector<std::string_view>& pieces) {
      std::string first;
      for (const std::string_view piece : pieces)
        for (const ParameterText& parameter : parameters)
          if (parameter.sets_budget && parameter.name == key_and_value(piece).first) {
            if (!first.empty())
              complain(ErrorCode::invalid_argument,
                       "'" + first + "' and '" + parameter.name + "' both set the budget of " + part.entry->name(),
                       piece);
            first = parameter.name;
          }
    }

    [[noreturn]] void complain(ErrorCode code, const std::string& what, std::string_view where) {
      const auto column = static_cast<std::size_t>(where.data() - text_.data());
      fail(code, what + "\n  " + std::string(text_) + "\n  " + std::string(column, ' ') +
                     std::string(std::max<std::size_t>(1, where.size()), '^'));
    }
    [[noreturn]] void complain(ErrorCode code, const std::string& what, std::string_view where, std::string_view wrong,
                               const std::vector<std::string>& known) {
      complain(code, what + "; " + suggestion(wrong, known), where);
    }

    std::string_view trimmed(std::size_t begin, std::size_t end) const {
      return trimmed(text_.substr(begin, end - begin));
    }
    static std::string_view trimmed(std::string_view part) {
      while (!part.empty() && is_space(part.front())) part.remove_prefix(1);
      while (!part.empty() && is_space(part.back())) part.remove_suffix(1);
      return part;
    }
    static bool is_space(char letter) { return letter == ' ' || letter == '\t' || letter == '\n' || letter == '\r'; }
    static std::vector<std::string_view> split(std::string_view words) {
      std::vector<std::string_view> pieces;
      for (std::size_t begin = 0; begin <= words.size();) {
        const std::size_t end = std::min(words.find(',', begin), words.size());
        pieces.push_back(trimmed(words.substr(begin, end - begin)));
        begin = end + 1;
      }
      return pieces;
    }
    static std::pair<std::string_view, std::string_view> key_and_value(std::string_view piece) {
      const std::size_t equal = piece.find('=');
      if (equal == std::string_view::npos) return {piece, piece.substr(piece.size())};
      return {trimmed(piece.substr(0, equal)), trimmed(piece.substr(equal + 1))};
    }

    std::string_view text_;
  };

  AnyPolicy() = default;

  static std::string joined(const std::vector<std::string>& words, const std::string& separator = ", ") {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : separator) + word;
    return text;
  }
  static std::string line(std::string left, const std::string& right) {
    constexpr std::size_t Width = 26;
    left.resize(std::max(Width, left.size() + 1), ' ');
    return "  " + left + right + "\n";
  }

  std::vector<Part> parts_;
};

}  // namespace kvc
