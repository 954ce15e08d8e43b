#pragma once
#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace evaluation {

/// One option of a program, as its help shows it.
struct OptionText {
  std::string name;      ///< with the dashes: "--keep"
  std::string value;     ///< what follows it, e.g. "FILE"; empty: nothing does
  std::string fallback;  ///< the value that counts when it is not given; empty: none
  std::string help;
  std::string heading = {};  ///< stands above this option in the help; empty: the option belongs to the group before
};

/// The words of a command line, `--name value` or `--name=value`, checked against what the program knows.
class Arguments {
 public:
  /// Throws kvc::Error for an unknown option, one given twice, a missing value, or a word that is no option.
  Arguments(std::span<const char* const> words, std::span<const OptionText> known);

  bool has(std::string_view name) const { return given_.find(name) != given_.end(); }
  /// The value given, else the fallback.
  const std::string& text(std::string_view name) const;
  /// Throws kvc::Error for the option's value unless it is a whole number in [least, most].
  std::size_t count(std::string_view name, std::size_t least, std::size_t most) const;
  /// A list of different whole numbers in [least, most], separated by commas. Throws kvc::Error for anything else.
  std::vector<std::size_t> counts(std::string_view name, std::size_t least, std::size_t most) const;
  /// A list of words, separated by commas; empty if the option's value is.
  std::vector<std::string> words(std::string_view name) const;
  /// A list of fractions in (0, 1], separated by commas. Throws kvc::Error for anything else, or one given twice.
  std::vector<double> fractions(std::string_view name) const;

 private:
  std::map<std::string, std::string, std::less<>> given_, fallbacks_;
};

/// The options as a table, wrapped for a terminal of 100 columns.
std::string option_table(std::span<const OptionText> known);

/// The words of `text` in lines of at most `width` columns. The first line begins at column `indent`, the others with as
/// many blanks.
std::string wrapped(std::string_view text, std::size_t width, std::size_t indent);

}  // namespace evaluation
