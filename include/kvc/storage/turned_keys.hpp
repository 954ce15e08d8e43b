#pragma once
#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/rotary.hpp"
#include "kvc/storage/head_store.hpp"

// Keys of slots whose positions were shifted (CacheCore::shift) lie in storage as they were rotated before. Attention turns its
// queries instead (attention/queries.hpp); here is what everybody else needs.
namespace kvc::inline KVC_ABI {

/// The keys of slots [first, first + keys.count), rotated for the positions where they stand.
[[gnu::noinline]] inline void gather_keys(const HeadStore& head, const Rotary& rotary, std::size_t first,
                                          Rows<float> keys) {
  head.keys().gather(first, keys);
  std::size_t slot = first;
  for (const TurnList::Run& run : head.slots().turns().runs())
    for (const std::size_t end = std::min<std::size_t>(run.end, first + keys.count); slot < end; ++slot)
      if (run.turn != 0) rotate(keys[slot - first], rotary, run.turn);
}

/// Turns a key that was rotated for the position where the slot stands to what is stored in its place.
[[gnu::noinline]] inline void turn_back(const HeadStore& head, const Rotary& rotary, std::size_t slot,
                                        std::span<float> key) {
  const std::int32_t turn = head.slots().turns()[slot];
  if (turn != 0 && !key.empty()) rotate(key, rotary, -double(turn));
}

}  // namespace kvc::inline KVC_ABI
