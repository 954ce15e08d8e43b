#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kvc/session/blocks.hpp"
#include "kvc/session/formats.hpp"
#include "kvc/session/heading.hpp"

// What is known of a head, as bytes. load_head.hpp reads it in the same order.
namespace kvc::inline KVC_ABI::session {

/// A policy's memory is saved.
class SavedFields final : public Fields {
 public:
  explicit SavedFields(Packer& packer) : packer_(packer) {}
  bool loads() const override { return false; }
  void move(void* data, std::size_t bytes) override { packer_.put_bytes(data, bytes); }
  std::size_t left() const override { return 0; }
  [[noreturn]] void refuse(const char* what) const override {
    fail(ErrorCode::incompatible, {"save: the memory of a policy has ", what});
  }

 private:
  Packer& packer_;
};

/// How a list of positions is kept.
enum class PositionKind : std::uint8_t { identity, explicit_list, packed };
/// A gap between positions of this and more does not stand in its byte.
inline constexpr std::int32_t FarGap = 255;

/// Gaps in a byte each, and the positions behind gaps that are too large for one.
inline void put_positions(Packer& packer, const PositionList& positions) {
  const PositionKind kind = positions.identity() ? PositionKind::identity
                            : positions.packed() ? PositionKind::packed
                                                 : PositionKind::explicit_list;
  packer.put<std::uint8_t>(static_cast<std::uint8_t>(kind));
  if (kind == PositionKind::identity) return;
  std::vector<Position> all(positions.size()), far;
  positions.copy_to(all);
  std::vector<std::uint8_t> gaps;
  gaps.reserve(all.size());
  std::int64_t last = -1;
  for (const Position position : all) {
    const std::int64_t gap = position - last;
    if (gap >= FarGap) far.push_back(position);
    gaps.push_back(static_cast<std::uint8_t>(std::min<std::int64_t>(gap, FarGap)));
    last = position;
  }
  packer.put_list<std::uint8_t>(gaps);
  packer.put_size(far.size());
  packer.put_list<Position>(far);
}

inline void put_slots(Packer& packer, const SlotTable& slots) {
  packer.put_size(slots.size());
  put_positions(packer, slots.positions());
  packer.put_size(slots.turns().runs().size());
  for (const TurnList::Run& run : slots.turns().runs()) {
    packer.put<std::uint32_t>(run.end);
    packer.put<std::int32_t>(run.turn);
  }
  const Multiplicity& tokens = slots.multiplicity();
  packer.put<std::uint8_t>(tokens.empty() ? 0 : tokens.floats().empty() ? 1 : 2);
  packer.put_list<std::uint16_t>(tokens.halves());
  packer.put_list<float>(tokens.floats());
  packer.put_flag(!slots.precision().empty());
  packer.put_list<std::uint8_t>(slots.precision());
}

/// The names of a side's codecs: a cache with others does not load it.
inline void put_codecs(Packer& packer, const RowTable& table, HeadId id) {
  packer.put_text(table.plain->name());
  packer.put_size(table.sealed.size());
  for (const RowTable::SealedCodec& sealed : table.sealed) {
    if (sealed.fitted)
      fail(ErrorCode::incompatible,
           {"save: layer ", id.layer, ", head ", id.head, " is sealed by ", sealed.codec->name(),
            ", a codec that was fitted to it (Codec::fit) and cannot be "
            "written down"});
    packer.put_text(sealed.codec ? sealed.codec->name() : "");
    packer.put_flag(sealed.asked);
  }
}

inline void put_segment(Packer& packer, const cache::Inside& in, const Side& side, const Segment& segment,
                        SharedBlocks& shared, std::vector<const Block*>& blocks) {
  const Block& block = *segment.block;
  packer.put_flag(segment.sealed);
  packer.put_flag(segment.norms != nullptr);
  packer.put<std::uint32_t>(static_cast<std::uint32_t>(segment.begin));
  packer.put<std::uint32_t>(static_cast<std::uint32_t>(segment.end));
  if (segment.norms) {
    packer.put_size(segment.norms->size());
    packer.put_list<float>(*segment.norms);
  }
  const bool shares = shared.has(segment);
  packer.put_flag(shares);
  bool is_new = true;
  if (shares) {
    std::size_t number = 0;
    std::tie(number, is_new) = shared.number_of(block);
    packer.put_size(number);
  }
  const CodecPlace place = place_of(in, side, block);
  packer.put<std::uint8_t>(static_cast<std::uint8_t>(place.whose));
  packer.put<std::uint8_t>(static_cast<std::uint8_t>(place.which));
  packer.put<std::uint8_t>(place.number);
  packer.put_flag(place.of_rows);
  packer.put<std::uint32_t>(static_cast<std::uint32_t>(block.capacity()));
  packer.put<std::uint64_t>(block.bytes());
  if (!is_new) return;
  blocks.push_back(&block);
}

inline void put_side(Packer& packer, const cache::Inside& in, const Side& side, SharedBlocks& shared,
                     std::vector<const Block*>& blocks) {
  const RowTable& table = side.in(in);
  put_codecs(packer, table, in.id_of(side.head));
  packer.put_flag(table.dense == table.wide);
  packer.put_size(table.segments.size());
  for (const Segment& segment : table.segments.all()) put_segment(packer, in, side, segment, shared, blocks);
  packer.put_flag(table.map.identity());
  packer.put_list<std::int32_t>(table.map.entries());
  packer.put_size(table.free.size());
  packer.put_list<std::uint32_t>(table.free);
}

/// Whether a policy may have given this head streams of its own.
inline bool has_own_streams(const cache::Inside& in, std::size_t head) {
  if (!in.memory[head].fitted) return false;
  for (std::size_t stage = 0; stage < in.stages.size(); ++stage)
    if (in.nodes[in.stage_node[stage]].verbs.fit && in.stages[stage]->works_on(in.layer_of(head))) return true;
  return false;
}

/// Puts a head; `blocks` are those whose rows are to follow.
inline void put_head(Packer& packer, const cache::Inside& in, std::size_t head, SharedBlocks& shared,
                     std::vector<const Block*>& blocks) {
  const HeadStore& store = in.heads[head];
  const cache::HeadMemory& memory = in.memory[head];
  packer.put_size(store.seen());
  packer.put_flag(memory.fitted);
  packer.put_size(memory.index_from);
  for (const cache::Allocated& budget : memory.budgets) {
    packer.put_size(budget.slots);
    packer.put_size(budget.own);
  }
  const bool own_streams = has_own_streams(in, head);
  packer.put_flag(own_streams);
  if (own_streams)
    for (const Role role : {Role::key, Role::value}) put_stream(packer, Side{head, role}.in(in).stream);
  put_slots(packer, store.slots());
  for (const Role role : {Role::key, Role::value}) put_side(packer, in, {head, role}, shared, blocks);
  packer.put_flag(store.in_step());
  SavedFields fields(packer);
  for (std::size_t node = 0; node < in.nodes.size(); ++node) {
    const Stage& stage = *in.nodes[node].stage;
    // Saving reads and changes nothing; loading writes through the same functions.
    stage.exchange_slots(const_cast<std::byte*>(store.slots().column(node)), store.size(), fields);
    if (!memory.states[node]->exchange(fields))
      fail(ErrorCode::incompatible, {"save: the State of ", plain_name(stage.type().text),
                                     " does not declare its fields, so it cannot be saved: "
                                     "auto fields() { return std::tie(…); }, see kvc/policy/fields.hpp"});
  }
}

}  // namespace kvc::inline KVC_ABI::session
