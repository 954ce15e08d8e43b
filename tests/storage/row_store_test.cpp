#include "catch_shim.hpp"

#include <set>

#include "kvc/codec/make.hpp"
#include "kvc/storage/compaction.hpp"
#include "kvc/storage/placement.hpp"
#include "kvc/storage/row_store.hpp"
#include "kvc/storage/sealing.hpp"
#include "support/naive_rows.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;

namespace {

/// How a walk's stores are set up.
struct Setup {
  const char* name;
  Role role;
  std::size_t dim;
  Dense dense;
  Stream stream;
};

Stream sealing(GroupQuant format, std::size_t sinks, std::size_t recent, std::size_t batch) {
  return {.format = format, .sinks = sinks, .recent = recent, .batch = batch};
}

Stream whole(Stream stream) {
  stream.whole_prompt = true;
  return stream;
}

std::vector<Setup> setups() {
  const GroupQuant channel{.bits = 4, .axis = Axis::channel, .group = 8},
      token{.bits = 4, .axis = Axis::token, .group = 8};
  const GroupQuant wide{.bits = 2, .axis = Axis::channel, .group = 32},
      exact{.bits = 8, .axis = Axis::token, .group = 16, .metadata = Scalar::f32};
  return {
      {"dense keys", Role::key, 8, {Scalar::f16}, {}},
      {"dense values", Role::value, 24, {Scalar::bf16}, {}},
      {"keys per channel", Role::key, 16, {Scalar::f16}, sealing(channel, 0, 0, 16)},
      {"keys per channel with sinks", Role::key, 16, {Scalar::f16}, sealing(channel, 4, 0, 16)},
      {"keys per channel with sinks and recent", Role::key, 16, {Scalar::f32}, sealing(wide, 3, 20, 32)},
      {"keys per token", Role::key, 16, {Scalar::f16}, sealing(token, 0, 10, 1)},
      {"keys of a whole prompt", Role::key, 16, {Scalar::f16}, whole(sealing(wide, 1, 0, 32))},
      {"values of a whole prompt", Role::value, 16, {Scalar::f16}, whole(sealing(token, 1, 0, 32))},
      {"values per token", Role::value, 16, {Scalar::f16}, sealing(token, 0, 20, 1)},
      {"values per token with sinks", Role::value, 16, {Scalar::f32}, sealing(exact, 5, 3, 4)},
      {"values per token with nothing recent", Role::value, 16, {Scalar::f16}, sealing(token, 0, 0, 1)},
      {"values per channel", Role::value, 16, {Scalar::f16}, sealing(channel, 2, 5, 8)},
  };
}

bool is_sealed(const RowStore& store, std::size_t slot) {
  const auto row = static_cast<std::size_t>(store.map()[slot]);
  for (const Segment& segment : store.segments())
    if (row >= segment.first && row < segment.first + segment.rows()) return segment.sealed;
  return false;
}

/// A store and the vector of rows that it should read as.
struct Pair {
  RowStore store;
  std::vector<naive::Stored> model;
  naive::Blocks blocks;
  Setup setup;
  static inline Workspace workspace;

  explicit Pair(const Setup& how)
      : store(make_codec(how.dense, how.role, how.dim), nullptr,
              how.stream.format ? std::vector{RowTable::SealedCodec{make_codec(*how.stream.format, how.role, how.dim)}}
                                : std::vector<RowTable::SealedCodec>(),
              how.stream, std::pmr::new_delete_resource()),
        setup(how) {}

  naive::Row dense(std::span<const float> values) const {
    naive::Row row;
    for (const float value : values) row.push_back(naive::rounded(setup.dense.type, value));
    return row;
  }
  void append(support::Dice& dice, std::size_t count) {
    std::vector<float> rows;
    for (std::size_t i = 0; i < count; ++i) {
      const auto row = dice.row(setup.dim);
      rows.insert(rows.end(), row.begin(), row.end());
      model.push_back({dense(row)});
    }
    const ConstRows view(rows.data(), count, setup.dim);
    const bool reuses = count == 1 && !store.seals();
    Placement placement(store.table());
    placement.reserve_append(count, reuses);
    placement.append(view, reuses);
  }
  void keep(const std::vector<std::uint8_t>& flags, bool compact) {
    Compaction compaction(store.table(), workspace);
    if (compact && store.sealed_rows() == 0) {
      compaction.compact_to(flags);
    } else {
      Workspace::Frame frame(workspace);
      const Compaction::Move moved = store.seals() ? compaction.reserve_release(flags, frame) : Compaction::Move();
      Placement placement(store.table());
      placement.reserve_keep(flags);
      placement.keep(flags);
      compaction.move(moved);
    }
    std::vector<naive::Stored> kept;
    for (std::size_t slot = 0; slot < flags.size(); ++slot)
      if (flags[slot]) kept.push_back(model[slot]);
    model = kept;
    // Which nearly empty blocks are given up is the store's decision; the slots left in them are dense again.
    for (std::size_t slot = 0; slot < model.size() && model.size() == store.map().size(); ++slot)
      if (model[slot].sealed() && !is_sealed(store, slot)) {
        model[slot].block = 0;
        for (double& value : model[slot].values) value = naive::rounded(setup.dense.type, value);
      }
  }
  void truncate(std::size_t slots) {
    Placement placement(store.table());
    placement.reserve_truncate(slots);
    placement.truncate(slots);
    model.resize(slots);
  }
  void rewrite(support::Dice& dice, std::size_t slot) {
    const auto row = dice.row(setup.dim);
    Placement placement(store.table());
    placement.reserve_rewrite(slot);
    placement.rewrite(slot, {row.data(), 1, row.size()});
    model[slot] = {dense(row)};
  }
  void seal(bool prompt_end) {
    PositionList positions;
    for (std::size_t slot = 0; slot < model.size(); ++slot) positions.push_back(static_cast<Position>(slot));
    Workspace::Frame frame(workspace);
    const TurnList turns;
    Sealing sealing(store.table(), {positions, turns, {}}, prompt_end, frame);
    if (sealing.is_one_piece()) {
      sealing.prepare();
      sealing.commit();
    } else {
      sealing.run();
    }
    std::vector<naive::Stored*> slots;
    for (naive::Stored& stored : model) slots.push_back(&stored);
    naive::seal_oldest(slots, setup.stream, blocks, prompt_end);
  }

  /// Empty if everything agrees, else what does not.
  std::string difference() const {
    if (store.map().size() != model.size())
      return "slots " + std::to_string(store.map().size()) + " instead of " + std::to_string(model.size());
    std::vector<float> read(model.size() * setup.dim);
    store.gather(0, {read.data(), model.size(), setup.dim});
    std::set<std::int32_t> rows;
    for (std::size_t slot = 0; slot < model.size(); ++slot) {
      if (is_sealed(store, slot) != model[slot].sealed())
        return "slot " + std::to_string(slot) + " is sealed or is not";
      if (!rows.insert(store.map()[slot]).second) return "slot " + std::to_string(slot) + " shares its row";
      for (std::size_t c = 0; c < setup.dim; ++c)
        if (!(std::fabs(read[slot * setup.dim + c] - model[slot].values[c]) <=
              2e-6 * (1 + std::fabs(model[slot].values[c]))))
          return "slot " + std::to_string(slot) + ", column " + std::to_string(c) + " reads " +
                 std::to_string(read[slot * setup.dim + c]) + " instead of " + std::to_string(model[slot].values[c]);
    }
    return segments_difference();
  }
  std::string segments_difference() const {
    std::size_t first = 0, dead = 0;
    for (const Segment& segment : store.segments()) {
      if (segment.first != first) return "a segment's first row is " + std::to_string(segment.first);
      if (segment.begin >= segment.end || segment.end > segment.block->capacity()) return "a segment of no rows";
      std::size_t live = 0;
      for (std::size_t slot = 0; slot < model.size(); ++slot) {
        const auto row = static_cast<std::size_t>(store.map()[slot]);
        live += row >= first && row < first + segment.rows();
      }
      if (segment.rows() - live != segment.dead)
        return "a segment counts " + std::to_string(segment.dead) + " dead rows";
      if (live == 0) return "a segment without live rows";
      first += segment.rows();
      dead += segment.dead;
    }
    if (first != store.rows() || dead != store.dead_rows()) return "rows or dead rows are not the segments'";
    return "";
  }
};

/// Flags that drop every slot with the given probability.
std::vector<std::uint8_t> random_flags(support::Dice& dice, std::size_t slots, double dropped) {
  std::vector<std::uint8_t> flags(slots, 1);
  for (auto& flag : flags) flag = !dice.chance(dropped);
  return flags;
}

/// One random thing that a cache does to a store.
std::string step(Pair& pair, support::Dice& dice) {
  const std::size_t slots = pair.model.size(), what = dice(20);
  if (what < 9) return pair.append(dice, 1), pair.seal(false), "append one and seal";
  if (what < 10) return pair.append(dice, 1 + dice(60)), pair.seal(false), "append some and seal";
  if (what < 11) return pair.append(dice, 1 + dice(700)), pair.seal(true), "append a prompt and seal";
  if (what < 12) return pair.append(dice, 1 + dice(3)), "append a few";
  if (slots == 0) return pair.append(dice, 3), "append three";
  if (what < 15) {
    std::vector<std::uint8_t> flags(slots, 1);
    flags[dice(slots)] = 0;
    return pair.keep(flags, false), pair.seal(false), "drop one and seal";
  }
  if (what < 16) return pair.keep(random_flags(dice, slots, dice.chance(0.5) ? 0.3 : 0.9), false), "drop many";
  if (what < 17) return pair.keep(random_flags(dice, slots, 0.7), true), "drop many and compact";
  if (what < 18) return pair.rewrite(dice, dice(slots)), "rewrite";
  if (what < 19) return pair.truncate(slots - dice(std::min<std::size_t>(slots, 30) + 1)), "truncate";
  return pair.seal(dice.chance(0.5)), "seal";
}

}  // namespace

TEST_CASE("rows sealed after several prompts lie in blocks that end where attention's chunks do") {
  Pair pair({"values per token",
             Role::value,
             16,
             {Scalar::f16},
             sealing({.bits = 4, .axis = Axis::token, .group = 8}, 0, 100, 1)});
  support::Dice dice(7);
  for (const std::size_t tokens : {500u, 700u, 30u, 900u}) {
    pair.append(dice, tokens);
    pair.seal(true);
  }
  std::set<std::size_t> begins;
  for (const Segment& segment : pair.store.segments())
    if (segment.sealed) begins.insert(segment.first);
  REQUIRE(pair.store.sealed_rows() == 2030);
  for (std::size_t row = 0; row < pair.store.sealed_rows(); row += RowStore::PromptRows) CHECK(begins.count(row) == 1);
  CHECK(pair.difference() == "");
}

TEST_CASE("A row store reads as the vector of rows it was told to be, through thousands of random steps") {
  for (const Setup& setup : setups())
    for (unsigned seed : {1u, 2u, 3u}) {
      support::Dice dice(seed);
      Pair pair(setup);
      std::string history;
      for (int i = 0; i < 1500; ++i) {
        const std::string did = step(pair, dice);
        const std::string difference = pair.difference();
        if (difference.empty()) continue;
        INFO(setup.name << ", seed " << seed << ", step " << i << ": " << did << ": " << difference);
        REQUIRE(difference.empty());
      }
      if (pair.model.size() > 400) pair.truncate(50);
      CHECK(pair.difference().empty());
    }
}

TEST_CASE("Forks of a row store share blocks and never see each other's writes") {
  for (const Setup& setup : setups()) {
    support::Dice dice(7);
    std::vector<Pair> pairs;
    pairs.emplace_back(setup);
    for (int i = 0; i < 1200; ++i) {
      if (dice.chance(0.03)) {
        const Pair fork = pairs[dice(pairs.size())];
        if (pairs.size() == 4) pairs.erase(pairs.begin() + std::ptrdiff_t(dice(4)));
        pairs.push_back(fork);
      }
      const std::string did = step(pairs[dice(pairs.size())], dice);
      for (const Pair& pair : pairs) {
        const std::string difference = pair.difference();
        if (difference.empty()) continue;
        INFO(setup.name << ", step " << i << ": " << did << ": " << difference);
        REQUIRE(difference.empty());
      }
    }
    CHECK(pairs.size() > 1);
  }
}

TEST_CASE("A fork costs no block until somebody writes") {
  support::Dice dice(1);
  Pair pair(setups()[0]);
  pair.append(dice, 100);
  Pair fork = pair;
  for (std::size_t i = 0; i < pair.store.segments().size(); ++i)
    CHECK(fork.store.segments()[i].block == pair.store.segments()[i].block);
  fork.append(dice, 1);
  CHECK(fork.store.segments()[0].block != pair.store.segments()[0].block);
  CHECK(pair.difference().empty());
}

TEST_CASE("Evicting most slots gives most bytes back, whatever is sealed") {
  for (const Setup& setup : setups()) {
    if (!setup.stream.format) continue;  // rows that are never sealed are reused instead
    support::Dice dice(3);
    Pair pair(setup);
    pair.append(dice, 1024);
    pair.seal(true);
    Stats before;
    pair.store.add_to(before);
    // One slot of 32 stays, so that no block loses all its rows by luck.
    std::vector<std::uint8_t> flags(1024, 0);
    for (std::size_t slot = 0; slot < 1024; slot += 32) flags[slot] = 1;
    pair.keep(flags, false);
    pair.seal(false);
    for (int i = 0; i < 40; ++i) {
      pair.append(dice, 1);
      std::vector<std::uint8_t> oldest_goes(pair.model.size(), 1);
      oldest_goes[0] = 0;
      pair.keep(oldest_goes, false);
      pair.seal(false);
    }
    Stats after;
    pair.store.add_to(after);
    INFO(setup.name << ": " << before.bytes() << " bytes, then " << after.bytes() << ", dead " << after.dead);
    CHECK(pair.difference().empty());
    const std::size_t live = pair.model.size() * setup.dim * scalar_bytes(setup.dense.type);
    const std::size_t open_blocks = 3 * 64 * setup.dim * scalar_bytes(setup.dense.type);
    CHECK(after.payload + after.slack <= 2 * live + open_blocks);
    CHECK(after.bytes() < before.bytes());
  }
}

TEST_CASE("No sealed block stays that is three quarters dead") {
  for (const Setup& setup : setups()) {
    if (!setup.stream.format) continue;
    support::Dice dice(5);
    Pair pair(setup);
    pair.append(dice, 1500);
    pair.seal(true);
    for (double dropped : {0.2, 0.5, 0.9}) {
      pair.keep(random_flags(dice, pair.model.size(), dropped), false);
      for (const Segment& segment : pair.store.segments()) {
        INFO(setup.name << ": " << segment.dead << " of " << segment.rows());
        if (segment.sealed) CHECK(segment.dead * 4 < segment.block->capacity() * 3);
      }
    }
  }
}

TEST_CASE("Steady eviction of a mostly dense sealing store holds few dead rows") {
  // H2O over KIVI with a budget below the residual: nothing is ever sealed, heavy hitters stay where they are.
  Setup setup{"", Role::key, 16, {Scalar::f16}, sealing({.bits = 4, .axis = Axis::channel, .group = 32}, 0, 0, 128)};
  support::Dice dice(9);
  Pair pair(setup);
  pair.append(dice, 64);
  for (int i = 0; i < 2000; ++i) {
    pair.append(dice, 1);
    std::vector<std::uint8_t> flags(pair.model.size(), 1);
    flags[dice.chance(0.1) ? dice(32) : 32 + dice(8)] = 0;
    pair.keep(flags, false);
    pair.seal(false);
  }
  CHECK(pair.difference().empty());
  INFO(pair.store.rows() << " rows for " << pair.model.size() << " slots");
  CHECK(pair.store.rows() <= 3 * pair.model.size());
}

TEST_CASE("The payload of a row store is the bytes of its rows, the rest of its blocks is slack") {
  for (const Setup& setup : setups()) {
    support::Dice dice(2);
    Pair pair(setup);
    pair.append(dice, 300);
    pair.seal(true);
    pair.append(dice, 1);
    Stats stats;
    pair.store.add_to(stats);
    std::size_t payload = 0, held = 0;
    for (const Segment& segment : pair.store.segments()) {
      const auto* format = segment.sealed ? &*setup.stream.format->get_if<GroupQuant>() : nullptr;
      const std::size_t rows = segment.rows();
      held += segment.block->bytes();
      if (!format) {
        const std::size_t size = scalar_bytes(setup.dense.type);
        const bool few = segment.block->capacity() < TileLanes;  // they lie one after the other
        payload += setup.role == Role::key && !few ? (rows + 15) / 16 * 16 * setup.dim * size
                                                   : rows * ((setup.dim + 15) / 16 * 16) * size;
      } else {
        payload += segment.block->codec().block_bytes(rows);
      }
    }
    CHECK(stats.payload == payload);
    CHECK(stats.payload + stats.slack == held);
    CHECK(stats.dead == 0);
  }
}
