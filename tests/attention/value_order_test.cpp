#include "catch_shim.hpp"

#include <cmath>
#include <random>

#include "kvc/attention/value_order.hpp"
#include "kvc/storage/head_store.hpp"

using namespace kvc;

namespace {

/// A head of KIVI's streams, in which keys are sealed 64 at a time and values one by one.
struct Head {
  static constexpr std::size_t Dim = 16;
  const CacheShape shape{.head_dim = Dim};
  const Streams streams{
      .key = {.format = GroupQuant{.bits = 4, .axis = Axis::channel, .group = 32}, .batch = 64},
      .value = {.format = GroupQuant{.bits = 4, .axis = Axis::token, .group = 16}, .recent = 64, .batch = 1}};
  HeadStore store{shape, streams, Dense{}, {}, std::pmr::new_delete_resource()};
  std::mt19937 random{7};
  mutable Workspace workspace = {};
  Position next = 0;

  void append(std::size_t count) {
    std::vector<float> rows(count * Dim);
    for (float& x : rows) x = std::normal_distribution<float>()(random);
    std::vector<Position> positions;
    for (std::size_t i = 0; i < count; ++i) positions.push_back(next++);
    const ConstRows tokens{rows.data(), count, Dim};
    store.append(tokens, tokens, positions);
  }
  void drop(std::size_t slot) {
    std::vector<std::uint8_t> flags(store.size(), 1);
    flags[slot] = 0;
    store.keep(flags, false, workspace);
  }
  /// The weights that every value row should get, straight from the maps.
  std::vector<float> expected(const std::vector<float>& weights) const {
    std::vector<float> rows(store.values().rows(), 0.0f);
    for (std::size_t slot = 0; slot < store.size(); ++slot)
      rows[static_cast<std::size_t>(store.values().map()[slot])] =
          weights[static_cast<std::size_t>(store.keys().map()[slot])];
    return rows;
  }
};

/// Some weight for every live key row, 0 for the dead ones.
std::vector<float> weights_of(const HeadStore& store) {
  std::vector<float> weights(store.keys().rows(), 0.0f);
  for (std::size_t slot = 0; slot < store.size(); ++slot)
    weights[static_cast<std::size_t>(store.keys().map()[slot])] = 1.0f + static_cast<float>(slot);
  return weights;
}

void check_moves(const Head& head) {
  const std::vector<float> before = weights_of(head.store);
  std::vector<float> weights = before, moved(head.store.values().rows(), NAN);
  Workspace::Frame frame(head.workspace);
  attention::ValueOrder(head.store, frame).move(weights.data(), moved.data());
  CHECK(moved == head.expected(before));
  CHECK(weights == before);
}

/// Drops one slot per token, as a cache at its budget does, and looks at every step.
template <class Choose>
void walk(std::size_t slots, std::size_t steps, Choose choose) {
  Head head;
  head.append(slots);
  head.store.seal(true, head.workspace);
  std::size_t out_of_step = 0;
  for (std::size_t step = 0; step < steps; ++step) {
    head.append(1);
    head.drop(choose(head));
    head.store.seal(false, head.workspace);
    check_moves(head);
    out_of_step += !head.store.in_step();
  }
  CHECK(out_of_step > steps / 2);
}

}  // namespace

TEST_CASE("weights reach their values after the oldest slots went") {
  walk(600, 900, [](Head&) { return std::size_t{4}; });
}

TEST_CASE("weights reach their values after slots anywhere went") {
  walk(600, 900, [](Head& head) { return head.random() % (head.store.size() - 100); });
}

TEST_CASE("weights reach their values after newest slots went") {
  walk(400, 500, [](Head& head) { return head.store.size() - 1 - head.random() % 90; });
}

TEST_CASE("weights reach their values where no run of slots is long") {
  Head head;
  head.append(320);
  head.store.seal(true, head.workspace);
  for (std::size_t slot = 0; slot < 150; ++slot) head.drop(slot);
  for (std::size_t slot = 0; slot < head.store.size(); slot += 3)
    head.store.rewrite(slot, std::vector<float>(Head::Dim, 1.0f), std::vector<float>(Head::Dim, 1.0f));
  head.append(1);
  check_moves(head);
}
