#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "kvc/stats.hpp"
#include "kvc/storage/row_table.hpp"

namespace kvc::inline KVC_ABI {

/// The keys, or the values, of one head, as attention and engines read them: segments of blocks, and the row of every slot.
/// Rows never move while decoding: an evicted dense row is reused (if the stream never seals), an evicted sealed row is
/// dead until its block is. A copy shares the blocks; whoever writes to one copies it first.
class RowStore {
 public:
  static constexpr std::size_t PromptRows = RowTable::PromptRows, OpenRows = RowTable::OpenRows,
                               SealedRows = RowTable::SealedRows;

  /// `wide`: of dense rows that `dense` has too few digits for; null: of none. `sealed`: by class of precision; empty if rows
  /// stay dense.
  RowStore(std::shared_ptr<const Codec> dense, std::shared_ptr<const Codec> wide,
           std::vector<RowTable::SealedCodec> sealed, const Stream& stream, std::pmr::memory_resource* memory)
      : table_{dense, dense, std::move(wide), std::move(sealed), stream, memory} {
    if (!table_.seals()) table_.note(table_.dense);
  }

  std::size_t dim() const { return table_.dim(); }
  std::size_t rows() const { return table_.rows(); }
  std::size_t dead_rows() const { return table_.dead_rows(); }
  std::span<const Segment> segments() const { return table_.segments.all(); }
  const IndexMap& map() const { return table_.map; }
  bool seals() const { return table_.seals(); }
  std::size_t sealed_rows() const { return table_.segments.sealed_rows(); }
  /// Codecs of this head's blocks that transform queries (keys) or sums (values): see Codec::prepare.
  std::span<const std::shared_ptr<const Codec>> transforming() const { return table_.transforming; }
  const std::shared_ptr<const Codec>& dense_codec() const { return table_.dense; }
  /// Whether the dense rows are kept wide.
  bool is_wide() const { return table_.dense == table_.wide; }
  /// The dense codec of rows that are not wide.
  const std::shared_ptr<const Codec>& plain_codec() const { return table_.plain; }
  /// What directions shared between layers are encoded with.
  const std::shared_ptr<const Codec>& sharing_codec() const {
    return table_.seals() && table_.sealed[0].codec ? table_.sealed[0].codec : table_.dense;
  }
  /// The largest magnitude of an element that is read back finite, whatever becomes of its row. That of wide rows does not
  /// count, or it would matter how a prompt is cut.
  float limit() const {
    float least = table_.plain->limit();
    for (const auto& sealed : table_.sealed)
      if (sealed.codec) least = std::min(least, sealed.codec->limit());
    return least;
  }
  /// Whether dropping the same slots from both stores, whose maps agree, leaves maps that agree: nothing of them is sealed,
  /// and their segments end, and die, at the same rows.
  bool moves_like(const RowStore& other) const {
    return !seals() && !other.seals() && sealed_rows() == 0 && other.sealed_rows() == 0 &&
           std::ranges::equal(segments(), other.segments(), [](const Segment& a, const Segment& b) {
             return a.rows() == b.rows() && a.dead == b.dead;
           });
  }

  /// Rows of slots [first, first + rows.count), decoded.
  void gather(std::size_t first, Rows<float> rows) const { table_.gather(first, rows); }

  /// Room for `slots` slots, so that reaching them allocates nothing. `reorders`: evictions will break the slot order.
  void reserve(std::size_t slots, bool reorders) {
    std::size_t blocks = 4;
    for_each_demand(slots, [&](std::size_t, std::size_t count) { blocks += count; });
    table_.segments.reserve(blocks);
    if (reorders) {
      table_.map.reserve(slots);
      table_.free.reserve(slots);
    }
  }
  /// Calls visit(bytes, count) for the blocks that reaching `slots` slots one by one asks for.
  template <class Visit>
  void for_each_demand(std::size_t slots, Visit visit) const {
    const Stream& stream = table_.stream;
    if (!seals() || stream.prompt_only) {
      for (std::size_t at = 0; at <= slots; at += table_.open_capacity(at))
        visit(table_.dense->block_bytes(table_.open_capacity(at)), 1);
      return;
    }
    constexpr std::size_t Transient = RowTable::TransientRows;
    // Each is at most `slots` here, so that no sum of settings wraps around.
    const std::size_t sinks = std::min(stream.sinks, slots), recent = std::min(stream.recent, slots),
                      batch = std::min(stream.batch, slots);
    const std::size_t live = std::min(slots, sinks + recent + batch) + 2 * Transient;
    visit(table_.dense->block_bytes(Transient), divide_up(live, Transient) + 1);
    for (const auto& sealed : table_.sealed) {
      if (!sealed.codec || stream.batch > slots) continue;  // too few slots to fill a batch
      for (std::size_t at = 0, capacity = 0; at <= slots + stream.batch; at += capacity) {
        capacity = table_.sealed_capacity(*sealed.codec, stream.batch, at);
        visit(sealed.codec->block_bytes(capacity), 1);
      }
    }
  }

  void add_to(Stats& stats) const {
    for (const Segment& segment : segments()) {
      const std::size_t used = std::min(segment.block->codec().block_bytes(segment.rows()), segment.block->bytes());
      const std::size_t owners = segment.norms ? 2 : 1;  // two layers share a block of directions
      stats.payload += used / owners;
      stats.slack += (segment.block->bytes() - used) / owners;
      if (segment.norms) stats.metadata += segment.norms->size() * sizeof(float);
      stats.dead += segment.dead;
      stats.metadata += sizeof(Segment) + sizeof(Block) + 2 * sizeof(void*);  // and the shared pointer's counts
    }
    for (const auto& sealed : table_.sealed)
      if (sealed.codec) stats.metadata += sealed.codec->own_bytes();
    stats.metadata += table_.map.bytes() + table_.free.capacity() * sizeof(std::uint32_t);
  }

  /// For those who change the store: Placement, Sealing, Compaction.
  RowTable& table() { return table_; }
  const RowTable& table() const { return table_; }

 private:
  RowTable table_;
};

}  // namespace kvc
