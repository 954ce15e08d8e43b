#include "windows.hpp"

#include <fmt/format.h>

#include "json.hpp"
#include "kvc/error.hpp"

namespace evaluation {
namespace {

Window take_window(std::span<const int> ids, const WindowPlan& plan) {
  const auto part = ids.first(plan.tokens());
  return {{part.begin(), part.end()}, plan.prompt};
}

std::vector<std::vector<int>> ids_of_windows(const Json& file) {
  std::vector<std::vector<int>> all;
  for (const Json& entry : file.is_object() ? file.at("windows") : file) all.push_back(whole_numbers(entry.at("ids")));
  return all;
}

}  // namespace

std::vector<Window> cut_windows(std::span<const int> text, const WindowPlan& plan) {
  std::vector<Window> windows;
  for (std::size_t w = 0; w < plan.count; ++w) {
    const std::size_t begin = plan.offset + w * plan.stride;
    if (begin + plan.tokens() > text.size())
      kvc::fail(
          kvc::ErrorCode::invalid_argument,
          fmt::format("the text has {} tokens, but window {} of {} ends at token {}: {} windows fit; ask for fewer "
                      "(--windows), or for a smaller --offset, --stride or --prompt",
                      text.size(), w + 1, plan.count, begin + plan.tokens(), w));
    windows.push_back(take_window(text.subspan(begin), plan));
  }
  return windows;
}

std::vector<Window> read_windows(const std::string& path, const WindowPlan& plan) {
  std::vector<Window> windows;
  for (const std::vector<int>& ids : read_json(path, "--windows-file", ids_of_windows)) {
    if (ids.size() < plan.tokens())
      kvc::fail(
          kvc::ErrorCode::bad_file,
          fmt::format("{}: window {} has {} tokens; {} prompt + {} decoded + 1 were asked for (--prompt, --decode)",
                      path, windows.size(), ids.size(), plan.prompt, plan.decode));
    windows.push_back(take_window(ids, plan));
  }
  if (windows.empty()) kvc::fail(kvc::ErrorCode::bad_file, fmt::format("{}: it has no windows", path));
  return windows;
}

}  // namespace evaluation
