#include <kvc/storage/position_list.hpp>

#include <random>
#include <vector>

#include "catch_shim.hpp"

using kvc::PositionList;

namespace {

std::vector<std::int32_t> read(const PositionList& list) {
  std::vector<std::int32_t> positions(list.size());
  list.copy_to(positions);
  for (std::size_t i = 0; i < positions.size(); ++i) REQUIRE(list[i] == positions[i]);
  return positions;
}
void append(PositionList& list, const std::vector<std::int32_t>& positions) {
  list.reserve_append(positions);
  for (const std::int32_t position : positions) list.push_back(position);
}

}  // namespace

TEST_CASE("A position list reads as a vector does, packed or not, whatever happens to it") {
  std::mt19937 random(1);
  const auto below = [&](std::size_t n) { return std::size_t(random() % n); };
  for (int round = 0; round < 300; ++round) {
    PositionList list;
    std::vector<std::int32_t> model;
    std::int32_t next = 0;
    for (int step = 0; step < 40; ++step) {
      switch (below(4)) {
        case 0: {  // neighbours, and some further apart than a byte can say
          std::vector<std::int32_t> positions;
          for (std::size_t i = below(90); i > 0; --i) {
            positions.push_back(next);
            next += 1 + std::int32_t(below(5) == 0 ? below(700) : 0);
          }
          append(list, positions);
          model.insert(model.end(), positions.begin(), positions.end());
          break;
        }
        case 1:
          list.pack();
          break;
        case 2: {
          const std::size_t size = model.size() - std::min(model.size(), below(20));
          list.truncate(size);
          model.resize(size);
          break;
        }
        default: {
          std::vector<std::uint8_t> flags(model.size());
          std::vector<std::int32_t> kept;
          for (std::size_t i = 0; i < flags.size(); ++i)
            if ((flags[i] = below(3) != 0)) kept.push_back(model[i]);
          list.reserve_keep(flags);
          list.keep(flags);
          model = kept;
        }
      }
      REQUIRE(read(list) == model);
    }
  }
}

TEST_CASE("A packed list takes about a byte a slot, and one whose positions are their numbers takes none") {
  PositionList even, sparse;
  std::vector<std::int32_t> numbers, positions;
  for (std::int32_t i = 0; i < 1000; ++i) {
    numbers.push_back(i);
    positions.push_back(8 * i + 3);
  }
  append(even, numbers);
  append(sparse, positions);
  CHECK(sparse.bytes() >= 4000);
  even.pack();
  sparse.pack();
  CHECK(even.bytes() == 0);
  CHECK(even.identity());
  CHECK(sparse.bytes() <= 1100);
  CHECK(read(sparse) == positions);
}

TEST_CASE("A packed list with room for more takes them without memory, and gives back what is reverted") {
  PositionList list;
  append(list, {5, 9, 700});
  list.reserve(200);
  list.pack();
  const std::size_t bytes = list.bytes();
  std::vector<std::int32_t> expected = {5, 9, 700};
  for (std::int32_t position = 701; position < 850; ++position) {
    append(list, {position});
    expected.push_back(position);
  }
  CHECK(list.bytes() == bytes);
  CHECK(read(list) == expected);
  list.revert(3, false);
  CHECK(read(list) == std::vector<std::int32_t>{5, 9, 700});
}

TEST_CASE("Shifted positions read as shifted ones do, packed or not, and cost nothing where position i is i again") {
  for (const bool packed : {false, true}) {
    PositionList list;
    append(list, {0, 1, 2, 300, 301, 302});
    if (packed) list.pack();
    list.shift(3, 6, -297);
    CHECK(list.identity());
    CHECK(read(list) == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5});
    list.shift(2, 6, 1000);
    CHECK(read(list) == std::vector<std::int32_t>{0, 1, 1002, 1003, 1004, 1005});
  }
}
