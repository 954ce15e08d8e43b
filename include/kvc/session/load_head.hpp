#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/session/save_head.hpp"

// A head out of bytes, in the order in which save_head.hpp puts them. Nothing in them is trusted: whatever storage, attention and
// policies take for granted is checked here, or a later call would read where nothing is.
namespace kvc::inline KVC_ABI::session {

/// A policy's memory is loaded.
class LoadedFields final : public Fields {
 public:
  LoadedFields(Unpacker& from, const Stage& stage) : from_(from), stage_(stage) {}
  bool loads() const override { return true; }
  void move(void* data, std::size_t bytes) override {
    const auto taken = from_.take(bytes);
    if (bytes != 0) std::memcpy(data, taken.data(), bytes);
  }
  std::size_t left() const override { return from_.left(); }
  [[noreturn]] void refuse(const char* what) const override {
    from_.damaged({"the memory of ", plain_name(stage_.type().text), " has ", what});
  }

 private:
  Unpacker& from_;
  const Stage& stage_;
};

/// A block whose rows are still to come, and the segment that gets it.
struct AwaitedBlock {
  RowTable* table = nullptr;
  std::size_t segment = 0;
  std::shared_ptr<const Codec> codec;
  std::size_t capacity = 0;
  bool shared = false;
};

inline constexpr auto MostPositions = static_cast<std::size_t>(std::numeric_limits<Position>::max());

/// Fills the heads of one layer, which are empty, with what a session says of them.
class LayerLoader {
 public:
  LayerLoader(cache::Inside& in, Unpacker& from, SharedBlocks& shared) : in_(in), from_(from), shared_(shared) {}

  std::vector<AwaitedBlock> run(std::size_t layer) {
#if defined(__cpp_exceptions)
    try {
      take(layer);
    } catch (const Error& error) {
      // The formats of a file, and the sizes of its blocks, may be such as no head can have: that is damage too.
      if (error.code() != ErrorCode::invalid_argument) throw;
      from_.damaged({error.what()});
    }
#else
    take(layer);
#endif
    return std::move(awaited_);
  }

 private:
  void take(std::size_t layer) {
    take_layer(in_.layers[layer]);
    const std::string where = from_.where();
    for (std::size_t head = in_.first_head(layer); head < in_.first_head(layer) + in_.shape.kv_heads; ++head) {
      from_.move_to(joined({where, ", head ", in_.id_of(head).head}));
      take_head(head, in_.layers[layer]);
    }
    from_.end();
  }
  void take_layer(cache::LayerState& state) {
    state.seen = from_.size(MostPositions, "the number of tokens seen");
    state.next_position = static_cast<Position>(from_.size(MostPositions, "the next position"));
    const auto most = static_cast<std::size_t>(state.next_position);
    state.changed_at = static_cast<Position>(from_.size(most, "the position of the last change"));
    state.merged_until = static_cast<Position>(from_.size(most, "the position that was merged last"));
    if (state.seen > most) from_.damaged({state.seen, " tokens were seen at ", most, " positions"});
  }

  void take_head(std::size_t head, const cache::LayerState& layer) {
    HeadStore& store = in_.heads[head];
    cache::HeadMemory& memory = in_.memory[head];
    const std::size_t seen = from_.size(layer.seen, "the number of tokens that the head has seen");
    memory.fitted = from_.flag();
    memory.index_from = from_.limit("the first slot that is not indexed");
    take_budgets(memory);
    const bool own_streams = from_.flag();
    if (own_streams != has_own_streams(in_, head)) from_.damaged({"its streams are not as its policy has them"});
    if (own_streams) take_streams(store);
    Slots slots = take_slots(seen, layer.next_position);
    take_side({head, Role::key}, store.parts().keys, slots);
    take_side({head, Role::value}, store.parts().values, slots);
    store.parts().slots.restore(std::move(slots.positions), std::move(slots.turns), std::move(slots.multiplicity),
                                std::move(slots.precision));
    store.restored(seen, from_.flag());
    for (std::size_t node = 0; node < in_.nodes.size(); ++node) {
      LoadedFields fields(from_, *in_.nodes[node].stage);
      in_.nodes[node].stage->exchange_slots(store.column(node), store.size(), fields);
      if (!memory.states[node]->exchange(fields)) fields.refuse("a State that does not declare its fields");
    }
    if (memory.index_from != Unlimited && memory.index_from > store.size())
      from_.damaged({"slot ", memory.index_from, " is not indexed, but there are ", store.size(), " slots"});
  }

  void take_budgets(cache::HeadMemory& memory) {
    for (std::size_t stage = 0; stage < in_.stages.size(); ++stage) {
      const std::size_t slots = from_.limit("a budget"), own = from_.limit("a budget");
      if (slots != Unlimited && !in_.nodes[in_.stage_node[stage]].verbs.allocates())
        from_.damaged({"stage ", stage, " has a budget of ", slots, ", which it never gives"});
      memory.budgets[stage] = {slots, own};
    }
  }

  void take_streams(HeadStore& store) {
    const Stream key = take_stream(from_);
    store.set_streams({.key = key, .value = take_stream(from_)});
  }

  struct Slots {
    PositionList positions;
    TurnList turns;
    Multiplicity multiplicity;
    std::vector<std::uint8_t> precision;
  };
  Slots take_slots(std::size_t seen, Position next_position) {
    const std::size_t count = from_.size(seen, "the number of slots");
    Slots slots;
    slots.positions = take_positions(count, next_position);
    slots.turns = take_turns(slots.positions);
    slots.multiplicity = take_multiplicity(count);
    if (from_.flag()) slots.precision = from_.list<std::uint8_t>(count);
    return slots;
  }
  PositionList take_positions(std::size_t count, Position next_position) {
    PositionList positions;
    const auto kind = take_enum(from_, PositionKind::packed, "the kind of a list of positions");
    if (kind == PositionKind::identity) {
      if (count > static_cast<std::size_t>(next_position)) from_.damaged({"there are more slots than positions"});
      positions.restore_identity(count);
      return positions;
    }
    const auto gaps = from_.list<std::uint8_t>(count);
    const auto far = from_.list<Position>(from_.size(count, "the number of far positions"));
    std::vector<Position> all;
    all.reserve(count);
    std::int64_t last = -1;
    std::size_t used = 0;
    for (const std::uint8_t gap : gaps) {
      const bool is_far = gap == FarGap;
      if (is_far && used == far.size()) from_.damaged({"a far position is missing"});
      const std::int64_t position = is_far ? far[used++] : last + gap;
      if (position <= last || position >= next_position)
        from_.damaged({"position ", position, " follows ", last, ", where the next token is at ", next_position});
      all.push_back(static_cast<Position>(position));
      last = position;
    }
    if (used != far.size()) from_.damaged({"there are more far positions than gaps"});
    if (kind == PositionKind::packed)
      positions.restore_packed(all);
    else
      positions.restore(std::move(all));
    return positions;
  }
  TurnList take_turns(const PositionList& positions) {
    TurnList turns;
    const std::size_t count = from_.size(positions.size(), "the number of runs of shifted slots");
    if (count != 0 && in_.shape.rotary.inv_freq.empty())
      from_.damaged({"positions were shifted, but the model has no rotary table"});
    std::vector<TurnList::Run> runs;
    for (std::size_t slot = 0; runs.size() < count;) {
      const TurnList::Run run{from_.get<std::uint32_t>(), from_.get<std::int32_t>()};
      if (run.end <= slot || run.end > positions.size() || (!runs.empty() && runs.back().turn == run.turn))
        from_.damaged({"a run of shifted slots ends at ", run.end, ", the one before at ", slot});
      for (const std::size_t end : {slot, std::size_t{run.end} - 1})
        if (const std::int64_t rotated = std::int64_t{positions[end]} - run.turn;
            rotated < 0 || rotated >= static_cast<std::int64_t>(MostPositions))
          from_.damaged({"the key of slot ", end, " was rotated for position ", rotated});
      slot = run.end;
      runs.push_back(run);
    }
    if (count != 0 && (runs.back().end != positions.size() || (count == 1 && runs[0].turn == 0)))
      from_.damaged({"the runs of shifted slots end at ", runs.back().end, " of ", positions.size(), " slots"});
    turns.restore(std::move(runs));
    return turns;
  }
  Multiplicity take_multiplicity(std::size_t count) {
    Multiplicity tokens;
    const auto kind = from_.get<std::uint8_t>();
    if (kind > 2) from_.damaged({"the kind of its multiplicities is ", kind, ", which means nothing"});
    if (kind == 1) tokens.restore(from_.list<std::uint16_t>(count), {});
    if (kind == 2) tokens.restore({}, from_.list<float>(count));
    for (std::size_t slot = 0; slot < (kind == 0 ? 0 : count); ++slot)
      if (!(tokens[slot] > 0) || !std::isfinite(tokens[slot]))
        from_.damaged({"slot ", slot, " stands for ", tokens[slot], " tokens"});
    return tokens;
  }

  void take_side(const Side& side, RowTable& table, const Slots& slots) {
    take_codecs(side, table);
    const bool wide = from_.flag();
    if (wide && !table.wide) from_.damaged({"its rows are wide, which this cache's never are"});
    table.dense = wide ? table.wide : table.plain;
    take_segments(side, table);
    take_map(table, slots.positions.size());
    take_free(table);
    for (const std::uint8_t number : slots.precision)
      if (const std::size_t classes = table.stream.classes.size(); classes != 0 && number > classes)
        from_.damaged({"a slot is of class ", number, ", but a stream has ", classes});
    for (const RowTable::SealedCodec& sealed : table.sealed)
      if (sealed.asked && sealed.codec) table.note(sealed.codec);
  }
  void take_codecs(const Side& side, RowTable& table) {
    const auto same = [&](std::string_view saved, std::string_view here) {
      if (saved == here) return;
      const HeadId id = in_.id_of(side.head);
      fail(ErrorCode::incompatible,
           {"load: the ", detail::side_of(side.role), "s of layer ", id.layer, ", head ", id.head, ": the session has ",
            saved.empty() ? "dense rows" : saved, ", this cache has ", here.empty() ? "dense rows" : here});
    };
    same(from_.text(), table.plain->name());
    const auto classes = from_.get<std::uint64_t>();
    if (classes != table.sealed.size()) {
      const HeadId id = in_.id_of(side.head);
      fail(ErrorCode::incompatible,
           {"load: the ", detail::side_of(side.role), "s of layer ", id.layer, ", head ", id.head, ": the session has ",
            classes, " formats to seal them with, this cache has ", table.sealed.size()});
    }
    for (RowTable::SealedCodec& sealed : table.sealed) {
      same(from_.text(), sealed.codec ? sealed.codec->name() : "");
      sealed.asked = from_.flag();
    }
  }

  void take_segments(const Side& side, RowTable& table) {
    // A segment takes more bytes than one.
    const std::size_t count = from_.size(from_.left(), "the number of segments");
    std::size_t rows = 0, sealed_runs = 0;
    bool sealed_before = false;
    for (std::size_t i = 0; i < count; ++i) {
      Segment segment = take_segment(side, table, i);
      rows += segment.rows();
      sealed_runs += segment.sealed && !sealed_before;
      sealed_before = segment.sealed;
      table.segments.reserve(1);
      table.segments.push_back(std::move(segment));
      if (rows > MostPositions) from_.damaged({"there are more rows than positions"});
    }
    if (sealed_runs > 1) from_.damaged({"its sealed rows do not lie together"});
    table.segments.number();
  }
  Segment take_segment(const Side& side, RowTable& table, std::size_t index) {
    Segment segment;
    segment.sealed = from_.flag();
    const bool has_norms = from_.flag();
    segment.begin = from_.get<std::uint32_t>();
    segment.end = from_.get<std::uint32_t>();
    if (segment.begin >= segment.end || (segment.sealed && segment.begin != 0) || (has_norms && !segment.sealed))
      from_.damaged({"segment ", index, " has the rows ", segment.begin, " to ", segment.end, " of a block"});
    if (has_norms) {
      const std::size_t norms = from_.size(MostPositions, "the number of norms");
      if (norms < segment.end) from_.damaged({"segment ", index, " has more rows than norms"});
      segment.norms = std::make_shared<const std::vector<float>>(from_.list<float>(norms));
      for (const float norm : *segment.norms)
        if (!std::isfinite(norm)) from_.damaged({"segment ", index, " has a norm that is not finite"});
    }
    const bool shares = from_.flag();
    if (has_norms && !shares) from_.damaged({"segment ", index, " has norms, but shares no block"});
    std::shared_ptr<Block> known;
    if (shares) {
      const std::size_t number = from_.size(shared_.loaded.size() + shared_new_, "the number of a shared block");
      if (number < shared_.loaded.size())
        known = shared_.loaded[number];
      else if (number != shared_.loaded.size() + shared_new_)
        from_.damaged({"segment ", index, " shares a block with its own layer"});
      else
        ++shared_new_;
    }
    AwaitedBlock block = take_block(side, table, segment, index);
    block.shared = shares;
    if (!known) {
      awaited_.push_back(std::move(block));
      return segment;
    }
    if (known->capacity() != block.capacity ||
        (block.codec.get() != &known->codec() && !reads_alike(*known, *block.codec)))
      from_.damaged({"segment ", index, " shares a block of ", known->capacity(), " rows in ", known->codec().name(),
                     ", but names one of ", block.capacity, " rows in ", block.codec->name()});
    table.note(known->shared_codec());
    segment.block = std::move(known);
    return segment;
  }
  AwaitedBlock take_block(const Side& side, RowTable& table, const Segment& segment, std::size_t index) {
    CodecPlace place;
    place.whose = take_enum(from_, CodecPlace::Whose::above, "whose a codec is");
    place.which = take_enum(from_, CodecPlace::Which::sealed, "which codec it is");
    place.number = from_.get<std::uint8_t>();
    place.of_rows = from_.flag();
    const std::size_t capacity = from_.get<std::uint32_t>();
    const auto bytes = from_.get<std::uint64_t>();
    // What codecs compute of a capacity is right only for one that a block can have.
    if (capacity == 0 || capacity > std::max(RowTable::PromptRows, table.stream.batch) + 2 * most_granule(table))
      from_.damaged({"a block has room for ", capacity, " rows"});
    auto codec = codec_at(in_, side, place, capacity);
    if (!codec) from_.damaged({"segment ", index, " is of a codec that the head has not"});
    if (codec->block_bytes(capacity) != bytes)
      from_.damaged({"a block of ", capacity, " rows in ", codec->name(), " has ", bytes, " bytes, where it takes ",
                     codec->block_bytes(capacity)});
    check_segment(side, segment, index, *codec, capacity);
    return {.table = &table, .segment = index, .codec = std::move(codec), .capacity = capacity};
  }
  void check_segment(const Side& side, const Segment& segment, std::size_t index, const Codec& codec,
                     std::size_t capacity) const {
    const std::size_t dim = side.role == Role::key ? in_.shape.head_dim : in_.shape.values_dim();
    const bool whole = !segment.sealed || segment.end % codec.granule() == 0;
    if (segment.end > capacity || !whole || codec.dim() != dim)
      from_.damaged({"segment ", index, " has the rows ", segment.begin, " to ", segment.end, " of a block of ",
                     capacity, " rows in ", codec.name()});
  }
  static std::size_t most_granule(const RowTable& table) {
    std::size_t most = RowTable::PromptRows;
    for (const RowTable::SealedCodec& sealed : table.sealed)
      if (sealed.codec) most = std::max(most, sealed.codec->granule());
    return most;
  }

  /// The row of every slot; rows that no slot has are dead.
  void take_map(RowTable& table, std::size_t slots) {
    const std::size_t rows = table.rows();
    if (slots > rows) from_.damaged({"there are ", slots, " slots, but ", rows, " rows"});
    if (from_.flag()) {
      table.map.reset(slots);
      used_.assign(rows, 0);
      std::fill_n(used_.begin(), slots, std::uint8_t{1});
    } else {
      auto entries = from_.list<std::int32_t>(slots);
      used_.assign(rows, 0);
      for (const std::int32_t row : entries) {
        if (row < 0 || static_cast<std::size_t>(row) >= rows || used_[static_cast<std::size_t>(row)])
          from_.damaged({"row ", row, " belongs to two slots, or is none of the ", rows, " rows"});
        used_[static_cast<std::size_t>(row)] = 1;
      }
      table.map.restore(std::move(entries));
    }
    for (std::size_t i = 0; i < table.segments.size(); ++i) {
      Segment& segment = table.segments[i];
      const auto begin = used_.begin() + static_cast<std::ptrdiff_t>(segment.first);
      segment.dead = static_cast<std::size_t>(
          std::count(begin, begin + static_cast<std::ptrdiff_t>(segment.rows()), std::uint8_t{0}));
    }
  }
  void take_free(RowTable& table) {
    const std::size_t count = from_.size(table.dead_rows(), "the number of free rows");
    table.free = from_.list<std::uint32_t>(count);
    if (count != 0 && table.seals()) from_.damaged({"it has free rows, though its rows are sealed"});
    for (const std::uint32_t row : table.free) {
      if (row >= used_.size() || used_[row] || table.segments.in_sealed(row))
        from_.damaged({"row ", row, " is no free row"});
      used_[row] = 1;
    }
  }

  cache::Inside& in_;
  Unpacker& from_;
  SharedBlocks& shared_;
  std::vector<std::uint8_t> used_;  // the rows of a side that slots, or the list of free rows, have
  std::vector<AwaitedBlock> awaited_;
  std::size_t shared_new_ = 0;  // shared blocks that this layer brings
};

}  // namespace kvc::inline KVC_ABI::session
