#include "catch_shim.hpp"

#include <memory_resource>
#include <string>
#include <vector>

#include "kvc/storage/arena.hpp"
#include "kvc/storage/head_store.hpp"
#include "support/allocation_counter.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;

// Every change of a head either happens or throws and leaves no trace. Each case runs a change once for every allocation it
// makes, has that allocation refused, and compares the head with a twin that nobody touched.

namespace {

constexpr CacheShape Shape{.query_heads = 1, .kv_heads = 1, .head_dim = 16};

/// How a head under test is set up.
struct Setup {
  const char* name;
  Streams streams;
};

std::vector<Setup> setups() {
  const GroupQuant channel{.bits = 4, .axis = Axis::channel, .group = 8},
      token{.bits = 4, .axis = Axis::token, .group = 8};
  const Stream per_channel{.format = channel, .batch = 16}, per_token{.format = token, .sinks = 3, .recent = 20};
  Stream classes = per_token;
  classes.classes = {GroupQuant{.bits = 2, .axis = Axis::token, .group = 16}, std::nullopt};
  Stream prompt = per_channel;
  prompt.prompt_only = true;
  return {{"dense", {}},
          {"KIVI", {per_channel, per_token}},
          {"keys sealed only", {per_token, {}}},
          {"classes of precision", {classes, classes}},
          {"sealed at the prompt's end only", {prompt, per_token}}};
}

/// All that a head says about itself, bit for bit.
struct Bits {
  std::vector<float> keys, values, multiplicity, bias;
  std::vector<Position> positions;
  std::vector<std::int32_t> key_rows, value_rows;
  std::vector<std::byte> column;
  std::vector<std::uint8_t> precision;
  std::vector<std::size_t> counts;

  explicit Bits(const HeadStore& head)
      : keys(head.size() * Shape.head_dim),
        values(head.size() * Shape.head_dim),
        multiplicity(head.slots().multiplicity().empty() ? 0 : head.size()),
        precision(head.slots().precision().begin(), head.slots().precision().end()) {
    head.slots().multiplicity().copy_to(multiplicity);
    head.keys().gather(0, {keys.data(), head.size(), Shape.head_dim});
    head.values().gather(0, {values.data(), head.size(), Shape.head_dim});
    for (std::size_t slot = 0; slot < head.size(); ++slot) {
      positions.push_back(head.slots().position(slot));
      key_rows.push_back(head.keys().map()[slot]);
      value_rows.push_back(head.values().map()[slot]);
    }
    column.assign(head.slots().column(0), head.slots().column(0) + head.size() * sizeof(float));
    for (const RowStore* store : {&head.keys(), &head.values()}) {
      counts.insert(counts.end(),
                    {store->rows(), store->dead_rows(), store->sealed_rows(), store->table().free.size()});
      for (const Segment& segment : store->segments())
        counts.insert(counts.end(), {segment.begin, segment.end, segment.dead, segment.first, segment.sealed});
    }
    counts.insert(counts.end(), {head.seen(), head.in_step()});
  }
  friend bool operator==(const Bits&, const Bits&) = default;
};

/// A head in which tokens were appended, sealed and evicted, so that every kind of segment and free rows are there.
struct Subject {
  HeadStore head;
  support::Dice dice{11};
  Workspace workspace;
  Position next = 0;

  Subject(const Setup& setup, std::pmr::memory_resource* memory)
      : head(Shape, setup.streams, Dense{}, {std::vector<std::byte>(sizeof(float))}, memory) {
    append(300);
    if (!setup.streams.key.classes.empty())
      for (std::size_t slot = 0; slot < head.size(); ++slot)
        head.set_precision(slot, static_cast<std::uint8_t>(slot % 3));
    head.seal(true, workspace);
    for (int step = 0; step < 70; ++step) {
      append(1);
      std::vector<std::uint8_t> flags(head.size(), 1);
      flags[5 + dice(head.size() - 10)] = 0;
      head.keep(flags, false, workspace);
      head.seal(false, workspace);
    }
    head.set_multiplicity(3, 2.0f);
  }
  void append(std::size_t count, bool behind = false) {
    std::vector<float> keys, values;
    std::vector<Position> positions;
    for (std::size_t i = 0; i < count; ++i) {
      for (const float x : dice.row(Shape.head_dim)) keys.push_back(x);
      for (const float x : dice.row(Shape.head_dim)) values.push_back(x);
      positions.push_back(next++);
    }
    append(keys, values, positions, behind);
  }
  void append(const std::vector<float>& keys, const std::vector<float>& values, const std::vector<Position>& positions,
              bool behind) {
    const std::size_t count = positions.size();
    head.append({keys.data(), count, Shape.head_dim}, {values.data(), count, Shape.head_dim}, positions, behind);
  }
};

/// A resource that refuses one allocation.
class Refusing final : public std::pmr::memory_resource {
 public:
  std::ptrdiff_t until_refusal = -1;
  std::size_t held = 0;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (until_refusal >= 0 && until_refusal-- == 0) throw std::bad_alloc();
    void* memory = std::pmr::new_delete_resource()->allocate(bytes, alignment);
    held += bytes;
    return memory;
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    held -= bytes;
    std::pmr::new_delete_resource()->deallocate(memory, bytes, alignment);
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }
};

/// Runs a change with its first, second, … allocation refused until none is; the head must be untouched after each failure
/// and changed as its twin after the success. Returns how many were refused.
template <class Change>
std::size_t refuse_each(const Setup& setup, Change change, bool from_global_new) {
  Refusing memory;
  Subject twin(setup, std::pmr::new_delete_resource());
  const Bits before(twin.head);
  change(twin);
  const Bits after(twin.head);
  std::size_t refused = 0;
  for (;; ++refused) {
    INFO(setup.name << ": allocation " << refused << (from_global_new ? " of operator new" : " of the resource"));
    Subject subject(setup, &memory);
    REQUIRE(Bits(subject.head) == before);
    bool failed = false;
    try {
      (from_global_new ? static_cast<void>(support::allocations_until_refusal = static_cast<std::ptrdiff_t>(refused))
                       : static_cast<void>(memory.until_refusal = static_cast<std::ptrdiff_t>(refused)));
      change(subject);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    support::allocations_until_refusal = -1;
    memory.until_refusal = -1;
    if (!failed) {
      REQUIRE(Bits(subject.head) == after);
      return refused;
    }
    REQUIRE(Bits(subject.head) == before);
    // What failed once does its work when there is memory again.
    subject.dice = support::Dice(11);
    REQUIRE(refused < 2000);
  }
}

template <class Change>
void refuse_each(Change change) {
  std::size_t refused = 0;
  for (const Setup& setup : setups())
    for (const bool from_global_new : {false, true}) refused += refuse_each(setup, change, from_global_new);
  CHECK(refused > 0);
}

/// Flags of `slots` slots, of which every `step`-th stays.
std::vector<std::uint8_t> every(std::size_t step, std::size_t slots) {
  std::vector<std::uint8_t> flags(slots, 0);
  for (std::size_t slot = 0; slot < slots; slot += step) flags[slot] = 1;
  return flags;
}

}  // namespace

TEST_CASE("Appending a token, some tokens or a prompt either happens or leaves the head as it was") {
  for (const std::size_t count : {1u, 20u, 700u})
    for (const bool behind : {false, true}) {
      const std::vector<float> rows(count * Shape.head_dim, 0.5f);
      std::vector<Position> positions;
      for (std::size_t i = 0; i < count; ++i) positions.push_back(static_cast<Position>(1000 + i));
      refuse_each([&](Subject& subject) {
        const HeadStore fork = subject.head;  // shares the blocks, so that writing copies one
        subject.append(rows, rows, positions, behind);
      });
    }
}

TEST_CASE("Sealing after a token or after a prompt either happens or leaves the head as it was") {
  for (const std::size_t count : {0u, 1u, 15u, 90u})
    for (const bool prompt_end : {false, true}) {
      std::size_t refused = 0;
      for (const Setup& setup : setups())
        for (const bool from_global_new : {false, true}) {
          // The head is copied before, as a cache does that must undo its other heads too: what is refused is in seal().
          refused += refuse_each(
              setup,
              [&](Subject& subject) {
                HeadStore original = subject.head;
                const auto limit = support::allocations_until_refusal.exchange(-1);
                subject.append(count);
                HeadStore appended = subject.head;
                const Bits before(subject.head);
                support::allocations_until_refusal = limit;
                try {
                  subject.head.seal(prompt_end, subject.workspace);
                } catch (const std::bad_alloc&) {
                  support::allocations_until_refusal = -1;
                  CHECK(Bits(subject.head) == before);
                  subject.head = std::move(original);
                  throw;
                }
                support::allocations_until_refusal = -1;
                CHECK(Bits(appended) == before);
              },
              from_global_new);
        }
      CHECK(refused > 0);
    }
}

TEST_CASE("Dropping slots, with and without moving rows, either happens or leaves the head as it was") {
  for (const std::size_t step : {2u, 9u, 40u})
    for (const bool compact : {false, true})
      refuse_each([&](Subject& subject) {
        const auto flags = every(step, subject.head.size());
        subject.head.keep(flags, compact, subject.workspace);
      });
}

TEST_CASE("What reserve_for_keep() was called for cannot fail") {
  for (const Setup& setup : setups()) {
    Refusing memory;
    Subject subject(setup, &memory);
    auto flags = std::vector<std::uint8_t>(subject.head.size(), 1);
    for (const std::size_t slot : {4u, 5u, 100u, 250u}) flags[slot] = 0;
    REQUIRE(subject.head.keeps_in_place(flags, subject.workspace));
    subject.head.reserve_for_keep(flags);
    memory.until_refusal = 0;
    support::allocations_until_refusal = 0;
    subject.head.keep_in_place(flags);
    support::allocations_until_refusal = -1;
    CHECK(subject.head.size() == flags.size() - 4);
  }
}

TEST_CASE("Cutting off the newest slots either happens or leaves the head as it was") {
  for (const std::size_t cut : {1u, 17u, 120u}) {
    std::size_t refused = 0;
    for (const Setup& setup : setups())
      for (const bool from_global_new : {false, true})
        refused += refuse_each(
            setup, [&](Subject& subject) { subject.head.truncate(subject.head.size() - cut, cut); }, from_global_new);
    CHECK(refused <= 20);  // only lists of free rows may grow
  }
}

TEST_CASE("Rewriting a slot, both sides or one, either happens or leaves the head as it was") {
  const std::vector<float> row(Shape.head_dim, 2.0f);
  for (const std::size_t slot : {4u, 150u, 299u}) {
    for (const auto& sides : {std::pair{true, true}, {true, false}, {false, true}}) {
      for (const Setup& setup : setups())
        for (const bool from_global_new : {false, true})
          refuse_each(
              setup,
              [&](Subject& subject) {
                const HeadStore fork = subject.head;  // shares the blocks, so that writing copies them
                subject.head.rewrite(slot, sides.first ? std::span<const float>(row) : std::span<const float>(),
                                     sides.second ? std::span<const float>(row) : std::span<const float>());
              },
              from_global_new);
    }
  }
}

TEST_CASE("Sharing directions between layers either happens or leaves the head as it was") {
  const auto codec = make_codec(Dense{}, Role::key, Shape.head_dim);
  for (const Setup& setup : setups())
    for (const bool from_global_new : {false, true}) {
      SharedRows shared{
          {}, Block::make(codec, 20, std::pmr::new_delete_resource()), std::make_shared<std::vector<float>>(20, 2.0f)};
      const std::vector<float> rows(20 * Shape.head_dim, 1.0f);
      codec->encode({rows.data(), 20, Shape.head_dim}, shared.block->data(), 20, 0);
      for (std::uint32_t i = 0; i < 20; ++i) shared.slots.push_back(10 + 7 * i);
      CHECK(refuse_each(
                setup,
                [&](Subject& subject) {
                  subject.head.share(Role::key, {&shared, 1}, subject.workspace);
                },
                from_global_new) > 0);
    }
}

TEST_CASE("revert() takes back what was appended since mark(), bit for bit") {
  for (const Setup& setup : setups())
    for (const auto& script : std::vector<std::vector<std::size_t>>{{1}, {1, 1, 1}, {700}, {3, 1, 40, 1}}) {
      Subject subject(setup, std::pmr::new_delete_resource());
      const Bits before(subject.head);
      const HeadStore::Mark mark = subject.head.mark();
      for (const std::size_t count : script) subject.append(count, count == 3);
      CHECK(subject.head.size() > mark.slots);
      subject.head.revert(mark);
      INFO(setup.name);
      CHECK(Bits(subject.head) == before);
      subject.append(5);
      subject.head.seal(false, subject.workspace);
      CHECK(Bits(subject.head).positions.size() == mark.slots + 5);
    }
}

TEST_CASE("An arena that cannot get memory loses nothing, and giving pieces back asks for none") {
  Refusing upstream;
  {
    Arena arena(&upstream);
    std::vector<void*> pieces;
    for (std::ptrdiff_t k = 0; k < 6; ++k)
      for (const bool global : {false, true}) {
        (global ? static_cast<void>(support::allocations_until_refusal = k)
                : static_cast<void>(upstream.until_refusal = k));
        try {
          for (std::size_t i = 0; i < 8; ++i) {
            const auto room = support::allocations_until_refusal.exchange(-1);
            pieces.reserve(pieces.size() + 1);
            support::allocations_until_refusal = room;
            pieces.push_back(arena.allocate(30'000 + 10'000 * i, 64));
          }
        } catch (const std::bad_alloc&) {
        }
        support::allocations_until_refusal = -1;
        upstream.until_refusal = -1;
        support::allocations_until_refusal = 0;
        for (std::size_t i = 0; i < pieces.size(); ++i) arena.deallocate(pieces[i], 30'000 + 10'000 * (i % 8), 64);
        support::allocations_until_refusal = -1;
        pieces.clear();
        CHECK(arena.free_bytes() == arena.held_bytes());
        CHECK(arena.held_bytes() == upstream.held);
      }
  }
  CHECK(upstream.held == 0);
}

TEST_CASE("An arena gives every piece the alignment that was asked for") {
  Arena arena;
  for (const std::size_t alignment : {1u, 64u, 128u, 4096u}) {
    void* piece = arena.allocate(100, alignment);
    CHECK(reinterpret_cast<std::uintptr_t>(piece) % alignment == 0);
    arena.deallocate(piece, 100, alignment);
  }
}
