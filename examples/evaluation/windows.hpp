#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace evaluation {

/// Where windows lie in a text. The defaults are those of the published reference measurements.
struct WindowPlan {
  std::size_t count = 4;
  std::size_t offset = 4096, stride = 16384;  ///< window w starts at token offset + w * stride
  std::size_t prompt = 1024, decode = 128;    ///< tokens read before the policy acts, and fed one by one after it

  /// The last token fed has a successor, which is only predicted.
  std::size_t tokens() const { return prompt + decode + 1; }
};

/// A stretch of text: the prompt, the tokens fed after it, and one more that is only predicted.
struct Window {
  std::vector<int> ids;
  std::size_t prompt = 0;
};

/// Cuts the windows out of a text's tokens. Throws kvc::Error (invalid_argument) if it is too short, saying what fits.
std::vector<Window> cut_windows(std::span<const int> text, const WindowPlan& plan);

/// Windows as literal ids, from a JSON list of objects with `ids`, or an object with such a list named `windows`.
/// Throws kvc::Error (bad_file) if there is none, or if one is shorter than the plan's windows; longer ones are cut.
std::vector<Window> read_windows(const std::string& path, const WindowPlan& plan);

}  // namespace evaluation
