#include "arguments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "kvc/error.hpp"
#include "kvc/named/suggestion.hpp"
#include "kvc/named/text.hpp"

namespace evaluation {
namespace {

[[noreturn]] void refuse(const std::string& sentence) {
  kvc::fail(kvc::ErrorCode::invalid_argument, sentence);
}

const OptionText& find(std::span<const OptionText> known, std::string_view name) {
  const auto found = std::ranges::find(known, name, &OptionText::name);
  if (found != known.end()) return *found;
  std::vector<std::string> names;
  for (const OptionText& option : known) names.push_back(option.name);
  kvc::fail(kvc::ErrorCode::unknown_name, fmt::format("unknown option '{}'; {}", name, kvc::suggestion(name, names)));
}

}  // namespace

Arguments::Arguments(std::span<const char* const> words, std::span<const OptionText> known) {
  for (const OptionText& option : known) fallbacks_[option.name] = option.fallback;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (!word.starts_with("--"))
      refuse(fmt::format("'{}' is no option: options start with --; --help lists them", word));
    const std::size_t equal = word.find('=');
    const OptionText& option = find(known, word.substr(0, equal));
    std::string value;
    if (equal != word.npos) {
      if (option.value.empty()) refuse(fmt::format("{} takes no value, got '{}'", option.name, word.substr(equal + 1)));
      value = word.substr(equal + 1);
    } else if (!option.value.empty()) {
      if (i + 1 == words.size()) refuse(fmt::format("{} needs a value: {} {}", option.name, option.name, option.value));
      value = words[++i];
    }
    if (!given_.emplace(option.name, value).second) refuse(fmt::format("{} is given twice", option.name));
  }
}

const std::string& Arguments::text(std::string_view name) const {
  const auto found = given_.find(name);
  return found != given_.end() ? found->second : fallbacks_.find(name)->second;
}

std::size_t Arguments::count(std::string_view name, std::size_t least, std::size_t most) const {
  const std::string& value = text(name);
  const auto number = kvc::TextOf<std::size_t>::read(value);
  if (!number || *number < least || *number > most)
    refuse(fmt::format("{} takes a whole number from {} to {}, got '{}'", name, least, most, value));
  return *number;
}

std::vector<std::string> Arguments::words(std::string_view name) const {
  const std::string& list = text(name);
  std::vector<std::string> all;
  for (std::size_t begin = 0; !list.empty() && begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    std::string_view word = std::string_view(list).substr(begin, end - begin);
    while (word.starts_with(' ')) word.remove_prefix(1);
    while (word.ends_with(' ')) word.remove_suffix(1);
    all.emplace_back(word);
    begin = end + 1;
  }
  return all;
}

std::vector<std::size_t> Arguments::counts(std::string_view name, std::size_t least, std::size_t most) const {
  std::vector<std::size_t> all;
  for (const std::string& word : words(name)) {
    const auto number = kvc::TextOf<std::size_t>::read(word);
    if (!number || *number < least || *number > most)
      refuse(fmt::format("{} takes whole numbers from {} to {}, separated by commas, got '{}'", name, least, most,
                         text(name)));
    if (std::ranges::count(all, *number) != 0) refuse(fmt::format("{}: {} is given twice", name, word));
    all.push_back(*number);
  }
  if (all.empty()) refuse(fmt::format("{} takes whole numbers from {} to {}, got ''", name, least, most));
  return all;
}

std::vector<double> Arguments::fractions(std::string_view name) const {
  std::vector<double> all;
  for (const std::string& word : words(name)) {
    const auto fraction = kvc::TextOf<double>::read(word);
    if (!fraction || *fraction <= 0 || *fraction > 1)
      refuse(fmt::format("{} takes fractions in (0, 1], separated by commas, got '{}'", name, text(name)));
    if (std::ranges::count(all, *fraction) != 0) refuse(fmt::format("{}: {} is given twice", name, word));
    all.push_back(*fraction);
  }
  if (all.empty()) refuse(fmt::format("{} takes fractions in (0, 1], got ''", name));
  return all;
}

std::string option_table(std::span<const OptionText> known) {
  std::string table;
  for (const OptionText& option : known) {
    if (!option.heading.empty()) table += (table.empty() ? "" : "\n") + option.heading + ":\n";
    const std::string help =
        option.help + (option.fallback.empty() ? "" : fmt::format(" (default: {})", option.fallback));
    table += fmt::format("  {:<23} {}\n", option.name + (option.value.empty() ? "" : " " + option.value),
                         wrapped(help, 100, 26));
  }
  return table;
}

std::string wrapped(std::string_view text, std::size_t width, std::size_t indent) {
  std::string result;
  std::size_t column = indent;
  while (!text.empty()) {
    const std::size_t length = std::min(text.find(' '), text.size());
    if (column > indent && column + 1 + length > width) {
      result += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      result += ' ';
      ++column;
    }
    result += text.substr(0, length);
    column += length;
    text.remove_prefix(std::min(length + 1, text.size()));
  }
  return result;
}

}  // namespace evaluation
