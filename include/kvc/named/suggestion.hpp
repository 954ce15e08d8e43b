#pragma once
#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/fragment.hpp"

namespace kvc::inline KVC_ABI {

/// How many letters must be inserted, deleted or replaced to make one word the other.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j < row.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replaced}));
    }
  }
  return row[b.size()];
}

/// "did you mean 'snapkv'? " if one of the words is near, then "there are: …". A long word is near to none.
inline std::string suggestion(std::string_view wrong, std::span<const std::string> words) {
  constexpr std::size_t LongestWord = 64;
  std::string list, nearest;
  std::size_t best = std::max<std::size_t>(2, wrong.size() / 3) + 1;
  for (const std::string& word : words) {
    list.append(list.empty() ? "" : ", ").append(word);
    const std::size_t distance = wrong.size() > LongestWord ? best : edit_distance(wrong, word);
    if (distance < best) {
      best = distance;
      nearest = word;
    }
  }
  if (nearest.empty()) return joined({"there are: ", list});
  return joined({"did you mean '", nearest, "'? there are: ", list});
}

}  // namespace kvc::inline KVC_ABI
