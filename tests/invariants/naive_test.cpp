#include "catch_shim.hpp"

#include "support/for_each_policy.hpp"
#include "support/naive_pair.hpp"

// Every policy against the naive cache: group sizes, tiny prompts, and a thousand random steps.

using namespace kvc;
using namespace support;

namespace {

constexpr int WalkSteps = Sanitized ? 200 : 1000;

}  // namespace

TEST_CASE("Groups of 1, 3, 4 and 8 query heads attend as the naive cache does") {
  for (const std::size_t group : {1u, 3u, 4u, 8u}) {
    const CacheShape shape = small_shape(group);
    const LayeredTokens text(shape, 112, 21);
    for_each_policy(Invariant::groups, [&](const PolicyCase& entry) {
      INFO("groups of " << group);
      NaivePair pair(shape, entry);
      pair.feed(text.slice(0, 80), Event::prompt_end);
      for (std::size_t t = 80; t < 112; ++t) pair.feed(text.slice(t, 1), Event::decode);
      CHECK_NOTHROW(pair.check_rows());
    });
  }
}

TEST_CASE("Prompts of no token, of one, and shorter than any window are prompts") {
  const CacheShape shape = small_shape();
  const LayeredTokens text(shape, 40, 22);
  for_each_policy(Invariant::short_prompts, [&](const PolicyCase& entry) {
    for (const std::size_t prompt : {0u, 1u, 2u, 5u, 7u}) {
      INFO("a prompt of " << prompt);
      NaivePair pair(shape, entry);
      pair.feed(text.slice(0, prompt), Event::prompt_end);
      CHECK(pair.seen() == prompt);
      for (std::size_t t = prompt; t < prompt + 20; ++t) pair.feed(text.slice(t, 1), Event::decode);
      CHECK_NOTHROW(pair.check_rows());
    }
    NaivePair unprompted(shape, entry);
    for (std::size_t t = 0; t < 20; ++t) unprompted.feed(text.slice(t, 1), Event::decode);
    CHECK_NOTHROW(unprompted.check_rows());
  });
}

namespace {

/// Random steps of a cache, of its forks, and of their models.
void walk(const PolicyCase& entry, unsigned seed, const CacheShape& shape, int steps) {
  const LayeredTokens text(shape, 2000, seed);
  Dice dice(seed);
  std::vector<NaivePair> pairs;
  pairs.emplace_back(shape, entry);
  const auto tokens = [&](std::size_t count) { return text.slice(dice(1950), count); };
  bool in_prompt = true;
  for (int step = 0; step < steps; ++step) {
    const std::size_t chosen = in_prompt ? pairs.size() - 1 : dice(pairs.size());
    NaivePair& pair = pairs[chosen];
    const std::size_t what = dice(100);
    INFO("step " << step << ", kind " << what);
    if (in_prompt) {
      in_prompt = what < 30;
      pair.feed(tokens(1 + dice(30)), in_prompt ? Event::prompt_chunk : Event::prompt_end);
    } else if (pair.seen() > 160) {
      pairs.erase(pairs.begin() + std::ptrdiff_t(chosen));
      pairs.emplace_back(shape, entry);
      in_prompt = true;
    } else if (what < 3) {
      const auto first = static_cast<Position>(dice(static_cast<std::size_t>(pair.next() + 1)));
      pair.remove(first, first + static_cast<Position>(dice(8)));
    } else if (what < 6) {
      const auto first = static_cast<Position>(dice(static_cast<std::size_t>(pair.next() + 1)));
      const auto last = first + static_cast<Position>(dice(10));
      if (what == 3) {  // context shift
        pair.remove(first, last);
        if (first < last && last < pair.next()) pair.shift(last, pair.next(), first - last);
      } else {
        pair.shift(first, what == 4 ? last : pair.next(), static_cast<Position>(dice(20)) - 10);
      }
    } else if (what < 70) {
      pair.feed(tokens(1), Event::decode);
    } else if (what < 75) {
      pair.feed(tokens(1 + dice(4)), Event::decode);
    } else if (what < 77) {
      pair.feed(tokens(1 + dice(30)), Event::prompt_end);
    } else if (what < 80) {
      if (pairs.size() < 3) pairs.push_back(pair.fork());
    } else if (what < 85) {
      pair.truncate(std::max<Position>(0, pair.next() - static_cast<Position>(dice(6))));
    } else if (what < 91) {
      const std::size_t drafted = 1 + dice(4);
      for (std::size_t i = 0; i < drafted; ++i) pair.draft(tokens(1));
      pair.accept(dice(drafted + 1));
    } else if (what < 93) {
      if (entry.compresses) pair.compress();
    } else if (what < 95) {
      pair.make_room(1 + dice(10));
    } else if (what < 97) {
      pair.save_and_load();
    } else {
      pair.attend(tokens(1));
    }
  }
  for (const NaivePair& pair : pairs) CHECK_NOTHROW(pair.check_rows());
}

}  // namespace

TEST_CASE("A thousand random steps of every policy equal the naive cache's") {
  unsigned seed = 100;
  for_each_policy(Invariant::walk, [&](const PolicyCase& entry) { walk(entry, ++seed, small_shape(), WalkSteps); });
}

TEST_CASE("So do those of every policy on a model with sliding windows and sink logits") {
  unsigned seed = 500;
  for_each_policy(Invariant::walk, [&](const PolicyCase& any) {
    PolicyCase entry = any;
    // The library computes that attention again over the slots that are left; the model remembers what it was.
    if (entry.reads_window()) entry.keep = nullptr;
    walk(entry, ++seed, windowed_shape(24, entry.merges() ? 24 : 0), WalkSteps / 2);
    walk(entry, ++seed, windowed_shape(entry.merges() ? 90 : 3, 90), WalkSteps / 2);
  });
}
