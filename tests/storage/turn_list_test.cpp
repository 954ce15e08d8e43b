#include <kvc/storage/turn_list.hpp>

#include <algorithm>
#include <random>
#include <vector>

#include "catch_shim.hpp"

using kvc::TurnList;

TEST_CASE("A turn list reads as a vector does and keeps as few runs as there are") {
  std::mt19937 random(3);
  const auto below = [&](std::size_t n) { return std::size_t(random() % n); };
  for (int round = 0; round < 300; ++round) {
    TurnList list;
    std::vector<std::int32_t> model;
    for (int step = 0; step < 60; ++step) {
      switch (below(4)) {
        case 0: {
          const std::size_t count = below(20);
          list.reserve_append();
          list.append(count);
          model.resize(model.size() + count);
          break;
        }
        case 1: {
          const std::size_t first = below(model.size() + 1), last = first + below(model.size() - first + 1);
          const auto turn = static_cast<std::int32_t>(below(5)) - 2;
          if (first == last) break;
          list.add(first, last, turn, model.size());
          for (std::size_t slot = first; slot < last; ++slot) model[slot] += turn;
          break;
        }
        case 2: {
          std::vector<std::uint8_t> flags;
          std::vector<std::int32_t> left;
          for (const std::int32_t turn : model) {
            flags.push_back(below(4) != 0);
            if (flags.back()) left.push_back(turn);
          }
          list.keep(flags);
          model = left;
          break;
        }
        default: {
          model.resize(model.size() - std::min(model.size(), below(10)));
          list.truncate(model.size());
        }
      }
      std::size_t runs = 0;
      for (std::size_t slot = 0; slot < model.size(); ++slot) {
        REQUIRE(list[slot] == model[slot]);
        runs += slot == 0 || model[slot] != model[slot - 1];
      }
      const bool none = std::ranges::all_of(model, [](std::int32_t turn) { return turn == 0; });
      REQUIRE(list.runs().size() == (none ? 0 : runs));
      if (!none) REQUIRE(list.runs().back().end == model.size());
    }
  }
}

TEST_CASE("A slot that is appended behind turned ones asks for no memory after reserve_append") {
  TurnList list;
  list.add(0, 4, 7, 4);
  list.reserve_append();
  const TurnList::Run* const before = list.runs().data();
  list.append(3);
  CHECK(list.runs().data() == before);
  CHECK(list[3] == 7);
  CHECK(list[4] == 0);
  list.truncate(4);
  CHECK(list.runs().size() == 1);
}
