#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI::detail {

/// Index of the first flag that is 0, else the number of flags.
inline std::size_t first_unset(std::span<const std::uint8_t> flags) {
  const void* zero = flags.empty() ? nullptr : std::memchr(flags.data(), 0, flags.size());
  return zero ? static_cast<std::size_t>(static_cast<const std::uint8_t*>(zero) - flags.data()) : flags.size();
}

/// Calls visit(i) for every flag that is 0.
template <class Visit>
void for_each_unset(std::span<const std::uint8_t> flags, Visit visit) {
  for (std::size_t i = first_unset(flags); i < flags.size(); i += 1 + first_unset(flags.subspan(i + 1))) visit(i);
}

/// Calls move(from, to, count) for every run of flags that are not 0 and that moves down because some before it are 0.
/// Returns how many flags are not 0. One evicted slot is one move, however many slots there are.
template <class Move>
std::size_t for_each_moved_run(std::span<const std::uint8_t> flags, Move move) {
  const auto find = [&](std::size_t from, bool set) {
    if (!set) return from + first_unset(flags.subspan(from));
    while (from < flags.size() && flags[from] == 0) ++from;
    return from;
  };
  std::size_t kept = flags.empty() ? 0 : find(0, false);
  for (std::size_t from = kept; from < flags.size();) {
    from = find(from, true);
    const std::size_t end = from < flags.size() ? find(from, false) : from;
    if (end > from) move(from, kept, end - from);
    kept += end - from;
    from = end;
  }
  return kept;
}

}  // namespace kvc::detail
