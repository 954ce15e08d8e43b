#include "catch_shim.hpp"

#include <algorithm>

#include "kvc/storage/row_store.hpp"
#include "support/sequence.hpp"

// Every policy against the naive cache: group sizes, tiny prompts, and a thousand random steps.

using namespace kvc;
using namespace support;

namespace {

// f32 throughout, so that sealing a row again that was sealed before changes nothing but its last bits.
constexpr CacheOptions Exact{.dense = {Scalar::f32}};
constexpr double Tolerance = 5e-4;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int WalkSteps = 200;  // ten times slower there, and most of the time is the naive cache's
#else
constexpr int WalkSteps = 1000;
#endif

/// A cache and its model, which make every step together.
class Pair {
 public:
  Pair(const CacheShape& shape, const PolicyCase& entry)
      : entry_(&entry),
        cache_(new Cache(shape, entry.policy(), Exact)),
        model_(shape, streams_of(*cache_), dense_of(streams_of(*cache_))) {
    model_.keep = entry.keep;
    model_.select = entry.select;
    for (const auto& stage : cache_->stages()) model_.in_cache |= stage->positions() == Positions::in_cache;
  }
  Pair fork() const { return Pair(entry_, std::unique_ptr<Cache>(new Cache(cache_->fork())), model_); }

  const CacheShape& shape() const { return cache_->shape(); }
  std::size_t seen() const { return cache_->stats().seen; }
  Position next() const { return model_.next_position(0); }
  bool seals() const { return cache_->key_rows({0, 0}).seals() || cache_->value_rows({0, 0}).seals(); }

  void feed(const Tokens& tokens, Event event) {
    for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
      Outputs out(shape(), tokens.q.count);
      if (event == Event::decode)
        cache_->decode(layer, tokens, out.rows(0, tokens.q.count));
      else
        cache_->prefill(layer, tokens, out.rows(0, tokens.q.count), event == Event::prompt_end);
      model_.append(layer, tokens);
      REQUIRE(naive::distance(out.values(), model_.attend_appended(layer, tokens.q, event)) < Tolerance);
      act(layer, event);
    }
  }
  void draft(const Tokens& tokens) {
    for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
      Outputs out(shape(), tokens.q.count);
      cache_->draft(layer, tokens, out.rows(0, tokens.q.count));
      REQUIRE(naive::distance(out.values(), model_.draft(layer, tokens)) < Tolerance);
    }
  }
  void accept(std::size_t count) {
    cache_->accept(count);
    for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
      model_.accept(layer, count);
      if (count != 0) act(layer, Event::decode);
    }
  }
  void compress() {
    cache_->compress();
    for (std::uint32_t layer = 0; layer < shape().layers; ++layer) act(layer, Event::prompt_end);
  }
  void make_room(std::size_t tokens) {
    cache_->make_room(tokens);
    for (std::uint32_t layer = 0; layer < shape().layers; ++layer)
      for (std::uint32_t head = 0; head < shape().kv_heads; ++head) follow({layer, head}, Event::make_room);
  }
  void truncate(Position from) {
    // Which sealed rows are left dead where a group is cut is storage's own affair: modelled only where nothing is cut.
    Pair trial = fork();
    if (!trial.cache_->truncate(from) && seals()) return;
    cache_->truncate(from);
    model_.truncate(from);
    for (const HeadId id : Sequence::heads(shape()))
      REQUIRE(cache_->positions(id) == naive::positions_of(model_.head(id.layer, id.head)));
  }
  void attend(const Tokens& tokens) {
    Outputs out(shape(), 1);
    cache_->attend(1, tokens.q, out.rows(0, 1));
    std::vector<double> expected;
    for (std::size_t q = 0; q < shape().query_heads; ++q) {
      const naive::Head& head = model_.head(1, q / shape().group());
      const double shift = double(head.size()) - double(model_.next_position(1));
      const auto answer = model_.attend_one(head, model_.query(tokens.q[0], q), head.size(), shift);
      expected.insert(expected.end(), answer.out.begin(), answer.out.end());
    }
    REQUIRE(naive::distance(out.values(), expected) < Tolerance);
  }
  void check_rows() const {
    for (const HeadId id : Sequence::heads(shape())) {
      const naive::Head& head = model_.head(id.layer, id.head);
      std::vector<float> keys(head.size() * shape().head_dim), values(head.size() * shape().values_dim());
      cache_->gather(id, {keys.data(), head.size(), shape().head_dim},
                     {values.data(), head.size(), shape().values_dim()});
      std::vector<double> all_keys, all_values;
      for (const naive::Slot& slot : head) {
        all_keys.insert(all_keys.end(), slot.key.values.begin(), slot.key.values.end());
        all_values.insert(all_values.end(), slot.value.values.begin(), slot.value.values.end());
      }
      CHECK(naive::distance(keys, all_keys) < Tolerance);
      CHECK(naive::distance(values, all_values) < Tolerance);
    }
  }

 private:
  using Cache = KVCache<AnyPolicy>;

  Pair(const PolicyCase* entry, std::unique_ptr<Cache> cache, const naive::Cache& model)
      : entry_(entry), cache_(std::move(cache)), model_(model) {}

  static Streams streams_of(const Cache& cache) {
    for (const auto& stage : cache.stages())
      if (stage->verbs().quantize) return stage->quantize({});
    return {};
  }
  static Scalar dense_of(const Streams& streams) {
    if (streams.key.format && std::holds_alternative<Dense>(*streams.key.format))
      return std::get<Dense>(*streams.key.format).type;
    return Exact.dense.type;
  }

  void act(std::uint32_t layer, Event event) {
    for (std::uint32_t head = 0; head < shape().kv_heads; ++head) {
      const HeadId id{layer, head};
      if (!entry_->keep) {
        follow(id, event);
        continue;
      }
      model_.evict(layer, head, entry_->keep(model_.head(layer, head), event));
      model_.end_pass(layer, head, event);
      REQUIRE(cache_->positions(id) == naive::positions_of(model_.head(layer, head)));
    }
  }
  /// Evicts what the library evicted.
  void follow(HeadId id, Event event) {
    const std::vector<Position> kept = cache_->positions(id);
    std::vector<bool> stays;
    for (const naive::Slot& slot : model_.head(id.layer, id.head))
      stays.push_back(std::binary_search(kept.begin(), kept.end(), slot.position));
    REQUIRE(std::size_t(std::count(stays.begin(), stays.end(), true)) == kept.size());
    model_.evict(id.layer, id.head, stays);
    model_.end_pass(id.layer, id.head, event);
  }

  const PolicyCase* entry_;
  std::unique_ptr<Cache> cache_;
  naive::Cache model_;
};

}  // namespace

TEST_CASE("Groups of 1, 3, 4 and 8 query heads attend as the naive cache does") {
  for (const std::size_t group : {1u, 3u, 4u, 8u}) {
    const CacheShape shape = small_shape(group);
    const RandomTokens text(shape, 112, 21);
    for_each_policy(Invariant::groups, [&](const PolicyCase& entry) {
      INFO("groups of " << group);
      Pair pair(shape, entry);
      pair.feed(text.tokens(0, 80), Event::prompt_end);
      for (std::size_t t = 80; t < 112; ++t) pair.feed(text.tokens(t, 1), Event::decode);
      pair.check_rows();
    });
  }
}

TEST_CASE("Prompts of no token, of one, and shorter than any window are prompts") {
  const CacheShape shape = small_shape();
  const RandomTokens text(shape, 40, 22);
  for_each_policy(Invariant::short_prompts, [&](const PolicyCase& entry) {
    for (const std::size_t prompt : {0u, 1u, 2u, 5u, 7u}) {
      INFO("a prompt of " << prompt);
      Pair pair(shape, entry);
      pair.feed(text.tokens(0, prompt), Event::prompt_end);
      CHECK(pair.seen() == prompt);
      for (std::size_t t = prompt; t < prompt + 20; ++t) pair.feed(text.tokens(t, 1), Event::decode);
      pair.check_rows();
    }
    Pair unprompted(shape, entry);
    for (std::size_t t = 0; t < 20; ++t) unprompted.feed(text.tokens(t, 1), Event::decode);
    unprompted.check_rows();
  });
}

namespace {

/// Random steps of a cache, of its forks, and of their models.
void walk(const PolicyCase& entry, unsigned seed) {
  const CacheShape shape = small_shape();
  const RandomTokens text(shape, 2000, seed);
  Dice dice(seed);
  std::vector<Pair> pairs;
  pairs.emplace_back(shape, entry);
  const auto tokens = [&](std::size_t count) { return text.tokens(dice(1950), count); };
  bool in_prompt = true;
  for (int step = 0; step < WalkSteps; ++step) {
    const std::size_t chosen = in_prompt ? pairs.size() - 1 : dice(pairs.size());
    Pair& pair = pairs[chosen];
    const std::size_t what = dice(100);
    INFO("step " << step << ", kind " << what);
    if (in_prompt) {
      in_prompt = what < 30;
      pair.feed(tokens(1 + dice(30)), in_prompt ? Event::prompt_chunk : Event::prompt_end);
    } else if (pair.seen() > 160) {
      pairs.erase(pairs.begin() + std::ptrdiff_t(chosen));
      pairs.emplace_back(shape, entry);
      in_prompt = true;
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
    } else {
      pair.attend(tokens(1));
    }
  }
  for (const Pair& pair : pairs) pair.check_rows();
}

}  // namespace

TEST_CASE("A thousand random steps of every policy equal the naive cache's") {
  unsigned seed = 100;
  for_each_policy(Invariant::walk, [&](const PolicyCase& entry) { walk(entry, ++seed); });
}
