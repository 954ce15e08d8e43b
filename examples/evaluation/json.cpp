#include "json.hpp"

#include <fmt/format.h>

#include <limits>
#include <string_view>
#include <utility>

#include "kvc/error.hpp"

namespace evaluation {

void refuse_json(const std::string& path, const std::string& what, const Json::exception& error) {
  std::string_view sentence = error.what();  // begins with "[json.exception.parse_error.101] "
  if (const auto end = sentence.find("] "); sentence.starts_with('[') && end != sentence.npos)
    sentence.remove_prefix(end + 2);
  kvc::fail(kvc::ErrorCode::bad_file,
            fmt::format("{}: {} is not the JSON that was expected: {}", what, path, sentence));
}

std::vector<int> whole_numbers(const Json& list) {
  std::vector<int> result;
  for (const Json& item : list.get_ref<const Json::array_t&>()) {
    const bool fits = item.is_number_unsigned()
                          ? std::in_range<int>(item.get<std::uint64_t>())
                          : item.is_number_integer() && std::in_range<int>(item.get<std::int64_t>());
    if (!fits)
      kvc::fail(kvc::ErrorCode::bad_file,
                fmt::format("expected whole numbers up to {}, got {}", std::numeric_limits<int>::max(), item.dump()));
    result.push_back(item.get<int>());
  }
  return result;
}

std::string to_text(const Json& value) {
  return value.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace evaluation
