#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "kvc/storage/position_list.hpp"
#include "kvc/storage/row_table.hpp"
#include "kvc/storage/turn_list.hpp"

namespace kvc::inline KVC_ABI {

/// What a row table is told of the slots that it seals.
struct SlotColumns {
  const PositionList& positions;
  const TurnList& turns;
  std::span<const std::uint8_t> precision;  ///< classes of precision; empty: all 0
};

/// Makes codes of the oldest dense slots, piece by piece. prepare() encodes a piece and may throw; commit() then gives its
/// slots their new rows and cannot fail. Rows in slot order keep their numbers; others move behind the sealed ones.
class Sealing {
 public:
  /// Whether a table has a batch to seal.
  static bool is_due(const RowTable& table, std::span<const std::uint8_t> precision, bool prompt_end) {
    if (!table.seals() || (table.stream.prompt_only && !prompt_end)) return false;
    std::size_t counts[256] = {};
    bool due = false;
    const std::size_t batch = batch_of(table, prompt_end);
    for_each_candidate(table, precision, batch, [&](std::size_t, std::size_t number) {
      due = due || (table.sealed[number].codec && ++counts[number] >= batch);
      return !due;
    });
    return due;
  }

  /// Works on `table` as long as `frame` lives.
  Sealing(RowTable& table, const SlotColumns& slots, bool prompt_end, Workspace::Frame& frame)
      : table_(table), slots_(slots), prompt_end_(prompt_end), batch_(batch_of(table, prompt_end)), frame_(frame) {
    if (table.seals() && (prompt_end || !table.stream.prompt_only)) begin_class(0);
  }

  /// Whether nothing is to be sealed, or nothing any more.
  bool done() const { return left_.empty(); }
  /// No slot before this one is going to be sealed. Not to be asked once done().
  std::size_t first_slot() const {
    return has_classes(table_, slots_.precision) ? table_.stream.sinks : std::size_t{left_.front()};
  }
  /// Whether one prepare() and commit() do it all, as while tokens are decoded.
  bool is_one_piece() const {
    return done() || (!prompt_end_ && class_ + 1 == table_.sealed.size() && codec().asked && taken() == left_.size());
  }

  /// Encodes the next piece. Throws what allocation and the codec throw, before anything that can be seen has changed.
  void prepare() {
    if (done()) return;
    piece_ = {.slots = left_.first(taken())};
    Workspace::Frame frame(frame_.workspace());
    const std::size_t count = piece_.slots.size();
    const auto values = frame.take(count * table_.dim());
    const auto positions = frame.take<Position>(count);
    const Rows<float> rows(values.data(), count, table_.dim());
    read(piece_.slots, rows, positions);
    if (in_order_ && first_row() > segment_at().first) prepare_front(frame);
    table_.segments.reserve(2);
    if (!in_order_) table_.map.reserve_more(0, true);
    const std::size_t open = is_odd(count) ? None : open_block(count);
    const auto sealed = is_odd(count) ? codec().codec->of_rows(count) : codec().codec;
    if (open == None) piece_.block = Block::make(sealed, capacity_for(*sealed, count), table_.memory);
    Block& block = piece_.block ? *piece_.block : RowTable::own(table_.segments[open]);
    // Rows behind the end of a block are nobody's yet.
    sealed->encode_at(rows, positions, block.data(), block.capacity(), piece_.block ? 0 : table_.segments[open].end);
  }

  /// The slots of the piece that was prepared have sealed rows.
  void commit() noexcept {
    if (done()) return;
    in_order_ ? commit_in_order() : commit_scattered();
    left_ = left_.subspan(piece_.slots.size());
    in_piece_ -= piece_.slots.size();
    if (in_piece_ == 0 && !left_.empty()) in_piece_ = piece_rows();
    piece_ = {};
    if (left_.empty() && class_ + 1 < table_.sealed.size()) pending_class_ = true;
  }

  /// Seals everything. For a table that nobody sees yet: where it throws, part has been done.
  void run() {
    bool any = false;
    while (!done()) {
      if (!codec().asked) fit();
      prepare();
      commit();
      any = true;
      if (pending_class_) begin_class(class_ + 1);
    }
    if (any && prompt_end_) shrink_tail();
  }

 private:
  static constexpr std::size_t None = static_cast<std::size_t>(-1);
  /// Slots that get rows of one block.
  struct Piece {
    std::span<const std::uint32_t> slots = {};
    std::shared_ptr<Block> block = nullptr;  ///< null: they continue a block that has room
    std::shared_ptr<Block> front = nullptr;  ///< dense rows before them that get a block of their own
  };

  static bool has_classes(const RowTable& table, std::span<const std::uint8_t> precision) {
    return !precision.empty() && table.sealed.size() > 1;
  }
  /// Slots are sealed in multiples of this.
  static std::size_t batch_of(const RowTable& table, bool prompt_end) {
    return prompt_end && table.stream.whole_prompt ? 1 : table.stream.batch;
  }
  /// Rows of a new block for `count` slots. A prompt that is sealed whole is followed by other blocks, so its last one has no
  /// room to spare.
  std::size_t capacity_for(const Codec& sealed, std::size_t count) const {
    if (prompt_end_ && table_.stream.whole_prompt) return count;
    return table_.sealed_capacity(sealed, count, table_.segments.sealed_rows());
  }
  const RowTable::SealedCodec& codec() const { return table_.sealed[class_]; }
  std::size_t first_row() const { return table_.row_of(left_.front()); }
  Segment& segment_at() const { return table_.segments[table_.segments.holding(first_row())]; }

  /// Begins with the slots of the first class from `number` on that has any to seal.
  void begin_class(std::size_t number) {
    pending_class_ = false;
    for (class_ = number; class_ < table_.sealed.size(); ++class_) {
      if (!codec().codec) continue;
      const auto found = candidates();
      left_ = found.first(found.size() / batch_ * batch_);
      if (!left_.empty()) break;
    }
    if (left_.empty()) return;
    const std::size_t sealed_end = table_.segments.first_sealed_row() + table_.segments.sealed_rows();
    // Slots of several classes take turns: each class goes on filling its own block, wherever that lies.
    in_order_ = !has_classes(table_, slots_.precision) && table_.map.identity() && table_.dead_rows() == 0 &&
                left_.back() - left_.front() + 1 == left_.size() &&
                (table_.segments.sealed_rows() == 0 || first_row() == sealed_end);
    in_piece_ = piece_rows();
  }

  /// Dense slots of the class, oldest first, beyond the sinks and without the newest `recent`; none if they are fewer than
  /// a batch.
  std::span<const std::uint32_t> candidates() const {
    std::size_t begin = table_.map.size();
    std::span<std::uint32_t> found;
    for_each_candidate(table_, slots_.precision, batch_, [&](std::size_t slot, std::size_t number) {
      if (found.empty()) found = frame_.take<std::uint32_t>(begin);
      if (number == class_) found[--begin] = static_cast<std::uint32_t>(slot);
      return true;
    });
    return found.empty() ? found : found.subspan(begin);
  }
  /// Calls visit(slot, class) for the dense slots beyond the sinks and without the newest `recent`, newest first, until it
  /// returns false; for none if they are fewer than a batch.
  template <class Visit>
  static void for_each_candidate(const RowTable& table, std::span<const std::uint8_t> precision, std::size_t batch,
                                 Visit visit) {
    const Stream& stream = table.stream;
    const std::size_t slots = table.map.size();
    if (slots <= stream.sinks || slots - stream.sinks <= stream.recent) return;
    const std::size_t sealed_dead = table.dead_rows() == 0 ? 0 : table.segments.sealed_dead();
    // From the newest backwards: the dense slots lie together at the end, so this stops early.
    std::size_t dense_left = slots - (table.segments.sealed_rows() - sealed_dead);
    if (dense_left < batch) return;
    const bool classed = has_classes(table, precision);
    for (std::size_t slot = slots; slot-- > stream.sinks && dense_left > 0;) {
      if (table.segments.in_sealed(table.row_of(slot))) continue;
      --dense_left;
      if (slots - slot > stream.recent && !visit(slot, classed ? precision[slot] : std::size_t{0})) return;
    }
  }

  /// Rows that would best lie in one block from here on: blocks that end where attention's chunks do are read whole.
  std::size_t piece_rows() const {
    const std::size_t batch = table_.stream.batch, granule = codec().codec->granule();
    std::size_t rows = std::max(RowTable::PromptRows / batch * batch, batch);
    if (in_order_ && RowTable::PromptRows % rows == 0 && left_.front() % batch == 0) rows -= left_.front() % rows;
    rows = std::min(rows, left_.size());
    if (rows == left_.size() && left_.size() <= last_rows()) return rows;
    rows = rows / granule * granule;
    const std::size_t rest = left_.size() - rows;
    return rest != 0 && rest + granule <= last_rows() ? rows - granule : rows;
  }
  /// The most slots that a prompt's last piece may have which is no multiple of the granule: half a granule more than one, so
  /// that a few left ones do not cost scales of their own.
  std::size_t last_rows() const { return codec().codec->granule() + codec().codec->granule() / 2; }
  bool is_odd(std::size_t rows) const { return rows % codec().codec->granule() != 0; }
  /// Slots of the next piece: as many as the open block has room for, or all that best lie in a new one.
  std::size_t taken() const {
    const std::size_t open = open_block(codec().codec->granule());
    if (open == None || is_odd(in_piece_)) return in_piece_;
    const std::size_t granule = codec().codec->granule();
    const std::size_t room = table_.segments[open].block->capacity() - table_.segments[open].end;
    return std::min(in_piece_, room / granule * granule);
  }
  /// Index of the segment whose block the next rows continue: with this codec, with room for `rows` more, and lying where
  /// the rows go; None if there is none.
  std::size_t open_block(std::size_t rows) const {
    const SegmentList& segments = table_.segments;
    const auto is_open = [&](std::size_t i) {
      const Segment& segment = segments[i];
      return segment.sealed && !segment.norms && &segment.block->codec() == codec().codec.get() &&
             segment.end + rows <= segment.block->capacity();
    };
    const std::size_t behind = segments.behind_sealed();
    if (!has_classes(table_, slots_.precision)) return behind > 0 && is_open(behind - 1) ? behind - 1 : None;
    for (std::size_t i = behind; i-- > 0;)
      if (is_open(i)) return i;
    return None;
  }
  /// The rows as they lie, and the positions for which their rotary embedding was computed.
  void read(std::span<const std::uint32_t> slots, Rows<float> rows, std::span<Position> positions) const {
    if (in_order_)
      table_.gather(slots.front(), rows);
    else
      for (std::size_t i = 0; i < slots.size(); ++i) table_.gather(slots[i], rows.subrows(i, 1));
    for (std::size_t i = 0; i < slots.size(); ++i) positions[i] = slots_.positions[slots[i]] - slots_.turns[slots[i]];
  }

  /// Asks the codec whether it fits itself to the rows that this head seals first.
  [[gnu::cold]] void fit() {
    Workspace::Frame frame(frame_.workspace());
    const auto values = frame.take(left_.size() * table_.dim());
    const auto positions = frame.take<Position>(left_.size());
    const Rows<float> rows(values.data(), left_.size(), table_.dim());
    read(left_, rows, positions);
    RowTable::SealedCodec& own = table_.sealed[class_];
    if (auto fitted = own.codec->fit(rows, positions)) {
      if (fitted->dim() != table_.dim() || table_.stream.batch % fitted->granule() != 0)
        fail(ErrorCode::invalid_argument,
             {"Codec ", own.codec->name(), ": fit() returned ", fitted->name(), " of ", fitted->dim(),
              " floats and a granule of ", fitted->granule(), "; the rows have ", table_.dim(),
              " floats, and the granule must divide the batch (", table_.stream.batch, ")"});
      if (table_.stream.whole_prompt && fitted->granule() > 1 && !fitted->of_rows(1))
        fail(ErrorCode::invalid_argument,
             {"Codec ", own.codec->name(), ": fit() returned ", fitted->name(), ", which encodes multiples of ",
              fitted->granule(), " tokens, but the stream seals whole prompts"});
      for (std::size_t i = 0; i < rows.count; ++i)
        for (const float x : rows[i])
          if (!(std::abs(x) <= fitted->limit()))
            fail(ErrorCode::non_finite,
                 {"Codec ", own.codec->name(), ": fit() returned ", fitted->name(), ", which holds ", fitted->limit(),
                  " at most, for rows with an element of ", x});
      own.codec = std::move(fitted);
      own.fitted = true;
    }
    own.asked = true;
    table_.note(own.codec);
  }

  /// A copy of the dense rows that share a block with the first of the piece and lie before it, in a block of their own.
  void prepare_front(Workspace::Frame& frame) {
    const Segment& segment = segment_at();
    const std::size_t count = first_row() - segment.first;
    const auto values = frame.take(count * table_.dim());
    const Rows<float> rows(values.data(), count, table_.dim());
    segment.decode(segment.first, rows);
    auto few = table_.dense->of_rows(count);
    piece_.front = Block::make(few ? std::move(few) : table_.dense, count, table_.memory);
    piece_.front->codec().encode(rows, piece_.front->data(), count, 0);
  }

  void commit_in_order() noexcept {
    SegmentList& segments = table_.segments;
    std::size_t at = segments.holding(first_row()), left = piece_.slots.size();
    if (piece_.front) {
      const std::size_t begin = segments[at].first, count = first_row() - begin;
      segments[at].begin += count;
      segments.insert(at, {.block = std::move(piece_.front), .end = count, .first = begin});
      ++at;
    }
    const std::size_t changed = piece_.block || at == 0 ? at : at - 1;
    if (piece_.block) {
      segments.insert(at, {.block = std::move(piece_.block), .end = left, .sealed = true});
      ++at;
    } else {
      segments[at - 1].end += left;
    }
    while (left > 0) {
      const std::size_t consumed = std::min(left, segments[at].rows());
      segments[at].begin += consumed;
      left -= consumed;
      if (segments[at].rows() == 0) segments.erase(at);
    }
    segments.number_from(changed);
  }

  void commit_scattered() noexcept {
    SegmentList& segments = table_.segments;
    std::size_t at = piece_.block ? segments.behind_sealed() : open_block(piece_.slots.size());
    for (const std::uint32_t slot : piece_.slots) ++segments[segments.holding(table_.row_of(slot))].dead;
    if (piece_.block)
      segments.insert(at, {.block = std::move(piece_.block), .end = piece_.slots.size(), .sealed = true});
    else
      segments[at].end += piece_.slots.size();
    table_.move_slots_to(at, piece_.slots);
  }

  /// After a prompt was sealed, the few dense rows left move out of its large blocks.
  void shrink_tail() {
    SegmentList& segments = table_.segments;
    std::size_t at = 0;
    while (at < segments.size() && (segments[at].sealed || segments[at].first < segments.first_sealed_row())) ++at;
    if (at == segments.size() || segments[at].begin < RowTable::TransientRows) return;
    for (std::size_t i = at; i < segments.size(); ++i)
      if (segments[i].dead != 0) return;
    const std::size_t begin = segments[at].first, count = table_.rows() - begin;
    Workspace::Frame frame(frame_.workspace());
    const auto values = frame.take(count * table_.dim());
    for (std::size_t i = at; i < segments.size(); ++i)
      segments[i].decode(segments[i].first, {values.data() + (segments[i].first - begin) * table_.dim(),
                                             segments[i].rows(), table_.dim()});
    segments.cut(at);
    table_.reserve_rows(count, table_.open_capacity(begin));
    table_.place({values.data(), count, table_.dim()});
  }

  RowTable& table_;
  SlotColumns slots_;
  bool prompt_end_, in_order_ = false, pending_class_ = false;
  std::size_t batch_;  // slots are sealed in multiples of this
  Workspace::Frame& frame_;
  std::size_t class_ = 0, in_piece_ = 0;
  std::span<const std::uint32_t> left_;
  Piece piece_;
};

}  // namespace kvc::inline KVC_ABI
