#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvc/storage/compaction.hpp"

namespace kvc::inline KVC_ABI {

/// A block of directions that two layers read, the slots whose rows they are, and their norms in one of the layers.
struct SharedRows {
  std::vector<std::uint32_t> slots;
  std::shared_ptr<Block> block;
  std::shared_ptr<const std::vector<float>> norms;
};

/// Gives slots the rows of shared blocks. Dense rows between those that they leave move together. Where it throws, part of
/// the work has been done: it is for a table that nobody sees yet.
[[gnu::cold]] inline void share_rows(RowTable& table, std::span<const SharedRows> blocks, Workspace& workspace) {
  SegmentList& segments = table.segments;
  for (const SharedRows& shared : blocks) {
    segments.reserve(1);
    table.map.reserve_more(0, true);
    table.note(shared.block->shared_codec());
    for (const std::uint32_t slot : shared.slots) ++segments[segments.holding(table.row_of(slot))].dead;
    // Before a block of codes that still fills up, or the next code would begin another one.
    std::size_t at = segments.behind_sealed();
    if (at > 0 && segments[at - 1].end < segments[at - 1].block->capacity()) --at;
    segments.insert(at, {.block = shared.block, .end = shared.slots.size(), .sealed = true, .norms = shared.norms});
    table.move_slots_to(at, shared.slots);
  }
  Compaction(table, workspace).move_behind([&](const Segment& segment) {
    return segment.sealed ? segment.dead * 4 >= segment.block->capacity() * 3 : segment.dead != 0;
  });
  table.map.settle();
}

}  // namespace kvc
