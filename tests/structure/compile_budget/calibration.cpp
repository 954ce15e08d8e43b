// What the budgets are relative to: standard headers and some of their templates, with about as much to parse as a file
// that uses the library.
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <regex>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

std::vector<std::string> words_of(const std::string& text, const std::string& pattern) {
  const std::regex expression(pattern, std::regex::icase | std::regex::ECMAScript);
  std::map<std::string, std::size_t> counts;
  for (std::sregex_iterator it(text.begin(), text.end(), expression), end; it != end; ++it) ++counts[it->str()];
  std::vector<std::string> words;
  for (const auto& [word, count] : counts) words.push_back(word + std::to_string(count));
  std::sort(words.begin(), words.end(), [](const auto& a, const auto& b) { return a.size() < b.size(); });
  std::stable_sort(words.begin(), words.end());
  return words;
}
