#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "files.hpp"

namespace evaluation {

/// A JSON value whose objects keep the order of their keys. Reach into it with at(), which throws Json::exception where
/// a key is missing; operator[] does not look.
using Json = nlohmann::ordered_json;

/// Throws kvc::Error (bad_file): the file, what it is for, and in words what JSON's library said about it.
[[noreturn]] void refuse_json(const std::string& path, const std::string& what, const Json::exception& error);

/// What `read` makes of the JSON in a file. Complaints, also those of `read` about a missing key or another type, are
/// kvc::Error (bad_file); they name the file, and `what` it is for.
template <class Read>
auto read_json(const std::string& path, const std::string& what, Read read) {
  const std::string text = read_file(path, what);
  try {
    return read(Json::parse(text));
  } catch (const Json::exception& error) {
    refuse_json(path, what, error);
  }
}

/// A list of whole numbers, e.g. token ids. Throws Json::exception if it is no list, kvc::Error (bad_file) for other
/// numbers and for numbers that an int cannot hold.
std::vector<int> whole_numbers(const Json& list);

/// The text of a value, indented, with a line break at its end. Bytes of a string that are not UTF-8 become U+FFFD, and
/// numbers that JSON cannot say become null.
std::string to_text(const Json& value);

}  // namespace evaluation
