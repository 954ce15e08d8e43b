// Failures that users of similar systems reported, or that trials found here once. Each case is one of them.
#include <kvc/kvc.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <tuple>
#include <type_traits>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/storage/row_store.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;
using support::Outputs;
using support::RandomTokens;

namespace {

const CacheShape Small{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16};

/// The code of the Error that `call` throws; nothing if it throws none.
template <class Call>
std::optional<ErrorCode> refusal(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return std::nullopt;
}

void prefill(CacheCore& cache, const RandomTokens& text, std::size_t first, std::size_t count) {
  for (std::size_t layer = 0; layer < cache.shape().layers; ++layer)
    cache.prefill(layer, text.tokens(first, count), {});
}
void decode(CacheCore& cache, const RandomTokens& text, std::size_t first, std::size_t count = 1) {
  for (std::size_t layer = 0; layer < cache.shape().layers; ++layer) {
    Outputs out(cache.shape(), count);
    cache.decode(layer, text.tokens(first, count), out.rows(0, count));
  }
}

/// Scores nothing and protects its newest tokens; eviction is the default.
struct ProtectsNewest {
  Budget budget = 10;
  void score(const Head<ProtectsNewest>&, std::span<float> scores) const {
    for (std::size_t slot = 0; slot < scores.size(); ++slot)
      scores[slot] = slot + 32 >= scores.size() ? Protected : 0.0f;
  }
};
/// Wants to see every row of attention, and does nothing with it.
struct Watcher {
  Needs needs() const { return {.prompt = Feed::rows, .decode = Feed::rows, .probe = Feed::rows}; }
  void observe(Head<Watcher>&, const Observation&) const {}
};
/// Remembers numbers that vector instructions want aligned.
struct Aligned {
  struct alignas(64) Slot {
    float numbers[16] = {};
  };
  void observe(Head<Aligned>& head, const Observation&) const {
    for (Slot& slot : head.slots) misaligned += reinterpret_cast<std::uintptr_t>(&slot) % alignof(Slot) != 0;
  }
  static inline std::size_t misaligned = 0;
};
struct FinalPolicy final {
  Budget budget = 10;
  std::size_t index = 0;  // a data member that is called as a verb is none
  void score(const Head<FinalPolicy>&, std::span<float> scores) const {
    for (std::size_t slot = 0; slot < scores.size(); ++slot) scores[slot] = static_cast<float>(slot + index);
  }
};

}  // namespace

TEST_CASE("Slots that a policy protects stay under the default eviction, beyond the budget") {
  const RandomTokens text(Small, 100, 1);
  KVCache cache(Small, ProtectsNewest{});
  prefill(cache, text, 0, 100);
  CHECK(cache.positions({0, 0}).size() == 32);
  CHECK(cache.positions({1, 1}).front() == 68);
}

TEST_CASE("A policy that only watches changes nothing of what another one keeps") {
  const RandomTokens text(Small, 160, 2);
  for (const Reduce reduce : {Reduce::sum, Reduce::max}) {
    const H2O policy{.budget = 60, .reduce = reduce};
    KVCache alone(Small, policy);
    KVCache watched(Small, policy | Watcher{});
    for (CacheCore* cache : {static_cast<CacheCore*>(&alone), static_cast<CacheCore*>(&watched)}) {
      prefill(*cache, text, 0, 100);
      for (std::size_t t = 100; t < 160; ++t) decode(*cache, text, t);
    }
    for (const HeadId id : {HeadId{0, 0}, HeadId{0, 1}, HeadId{1, 0}, HeadId{1, 1}})
      CHECK(alone.positions(id) == watched.positions(id));
  }
}

TEST_CASE("A policy's slots are aligned as their type wants") {
  const RandomTokens text(Small, 60, 3);
  KVCache cache(Small, Aligned{});
  prefill(cache, text, 0, 50);
  for (std::size_t t = 50; t < 60; ++t) decode(cache, text, t);
  CHECK(Aligned::misaligned == 0);
  CHECK(reinterpret_cast<std::uintptr_t>(cache.slots<Aligned>({1, 1}).data()) % 64 == 0);
}

TEST_CASE("A policy may be final, and have data that is called as a verb") {
  const RandomTokens text(Small, 40, 4);
  KVCache cache(Small, FinalPolicy{});
  prefill(cache, text, 0, 40);
  CHECK(cache.positions({0, 0}).front() == 30);
}

TEST_CASE("Caches can be kept in a vector, moved, and forked through their plain type") {
  const RandomTokens text(Small, 60, 5);
  std::vector<KVCache<H2O>> caches;
  for (int i = 0; i < 3; ++i) caches.emplace_back(Small, H2O{.budget = 30});
  prefill(caches[1], text, 0, 50);
  KVCache<H2O> moved = std::move(caches[1]);
  const CacheCore& plain = moved;
  CacheCore fork = plain.fork();
  decode(fork, text, 50);
  CHECK(fork.stats().seen == 51);
  CHECK(moved.stats().seen == 50);
  STATIC_REQUIRE(std::is_nothrow_move_constructible_v<KVCache<H2O>>);
}

TEST_CASE("A far position costs no memory") {
  const RandomTokens text(Small, 3, 6);
  KVCache cache(Small, Full{});
  const Position far = 1'500'000'000;
  Tokens first = text.tokens(0, 1);
  first.positions = {&far, 1};
  for (std::size_t layer = 0; layer < 2; ++layer) cache.prefill(layer, first, {});
  decode(cache, text, 1);
  CHECK(cache.positions({1, 0}) == std::vector<Position>{far, far + 1});
  CHECK(cache.stats().bytes() < 20'000);
}

TEST_CASE("Positions that run out are refused") {
  const RandomTokens text(Small, 4, 7);
  KVCache cache(Small, Full{});
  const Position last = std::numeric_limits<Position>::max() - 2;
  Tokens first = text.tokens(0, 1);
  first.positions = {&last, 1};
  for (std::size_t layer = 0; layer < 2; ++layer) cache.prefill(layer, first, {});
  CHECK(refusal([&] { decode(cache, text, 1, 3); }) == ErrorCode::invalid_argument);
  CHECK(cache.stats().seen == 1);
}

TEST_CASE("Rows beyond what the cache's formats hold are refused, not stored as infinity") {
  const RandomTokens text(Small, 40, 8);
  for (const float value : {7e4f, -7e4f, 1e30f}) {
    std::vector<float> keys(32, 1.0f), values(32, 1.0f), queries(64, 1.0f);
    keys[5] = value;
    const Tokens tokens{.q = {queries.data(), 1, 64}, .k = {keys.data(), 1, 32}, .v = {values.data(), 1, 32}};
    KVCache halves(Small, KIVI{.group = 16, .residual = 16});
    prefill(halves, text, 0, 40);
    const std::size_t bytes = halves.stats().bytes();
    CHECK(refusal([&] { halves.prefill(0, tokens, {}); }) == ErrorCode::non_finite);
    CHECK(halves.stats().bytes() == bytes);
    KVCache wide(Small, Full{.type = Scalar::f32});
    CHECK(refusal([&] { wide.prefill(0, tokens, {}); }) == std::nullopt);
  }
}

namespace {

/// `count` tokens whose keys are `offset` + U(0, 1) in every channel: what differs between them is all that attention has.
struct OffsetTokens {
  std::size_t count;
  std::vector<float> queries, keys, values;
  OffsetTokens(std::size_t tokens, float offset)
      : count(tokens), queries(tokens * 64), keys(tokens * 32), values(tokens * 32) {
    std::mt19937 generator(12);
    std::uniform_real_distribution<float> unit;
    for (float& x : queries) x = unit(generator);
    for (float& x : keys) x = offset + unit(generator);
    for (float& x : values) x = unit(generator);
  }
  Tokens tokens(std::size_t first, std::size_t number) const {
    return {.q = {queries.data() + first * 64, number, 64},
            .k = {keys.data() + first * 32, number, 32},
            .v = {values.data() + first * 32, number, 32}};
  }
  /// The largest error of a key of KV head 0 that a cache gives back after a prompt in two chunks.
  float worst_error(CacheCore& cache, std::size_t cut) const {
    for (std::size_t layer = 0; layer < 2; ++layer) {
      cache.prefill(layer, tokens(0, cut), {});
      cache.prefill(layer, tokens(cut, count - cut), {});
    }
    std::vector<float> k(count * 16), v(count * 16);
    cache.gather({0, 0}, {k.data(), count, 16}, {v.data(), count, 16});
    float worst = 0;
    for (std::size_t t = 0; t < count; ++t)
      for (std::size_t c = 0; c < 16; ++c) worst = std::max(worst, std::abs(k[t * 16 + c] - keys[t * 32 + c]));
    return worst;
  }
};

}  // namespace

TEST_CASE("Rows whose offset leaves f16 no digits for what differs between them are kept in f32") {
  const OffsetTokens text(64, 600);
  for (const std::size_t cut : {1u, 40u}) {
    KVCache cache(Small, Full{});
    CHECK(text.worst_error(cache, cut) == 0);
    CHECK(cache.key_rows({0, 0}).dense_codec()->name() == "f32");
    CHECK(cache.value_rows({0, 0}).dense_codec()->name() == "f16");
    CHECK(cache.stats().payload == 2 * 2 * 64 * 16 * (4 + 2));
  }
  KVCache plain(Small, Full{}, {.dense = {.widens = false}});
  CHECK(text.worst_error(plain, 40) > 0.2f);
  // A type that the policy names is kept.
  KVCache named(Small, Full{.type = Scalar::f16});
  CHECK(text.worst_error(named, 40) > 0.2f);
  KVCache small(Small, Full{});
  CHECK(OffsetTokens(64, 100).worst_error(small, 40) <= 0.03126f);
  CHECK(small.key_rows({0, 0}).dense_codec()->name() == "f16");
}

TEST_CASE("Codes of rows with a large offset are as exact as their bits allow, whatever their metadata's type") {
  const OffsetTokens text(64, 600);
  for (const auto& [bits, step] : {std::pair{4u, 1.0f / 15}, {8u, 1.0f / 255}})
    for (const Scalar metadata : {Scalar::f16, Scalar::f32}) {
      KVCache cache(Small, KIVI{.bits = bits, .group = 16, .residual = 16, .metadata = metadata});
      // A minimum in f16 lies up to half a unit below the least element: the range that the codes cover grows by as much.
      CHECK(text.worst_error(cache, 40) <= (metadata == Scalar::f16 ? 1.5f : 1.0f) * step / 2 * 1.02f);
    }
}

TEST_CASE("What a wide head's plain format cannot hold is refused in every part of a prompt, or in none") {
  OffsetTokens text(64, 600);
  text.keys[40 * 32] = 70'000;
  for (const std::size_t cut : {0u, 40u}) {
    KVCache cache(Small, Full{});
    if (cut != 0) cache.prefill(0, text.tokens(0, cut), {}, false);
    CHECK(refusal([&] { cache.prefill(0, text.tokens(cut, 64 - cut), {}); }) == ErrorCode::non_finite);
  }
}

TEST_CASE("Numbers whose sums or products would overflow are refused before they do") {
  const OffsetTokens plain(40, 1);
  const CacheOptions wide{.dense = {Scalar::f32}};
  OffsetTokens large = plain;
  std::ranges::fill(large.values, 1e38f);
  KVCache cache(Small, Full{}, wide);
  CHECK(refusal([&] { cache.prefill(0, large.tokens(0, 40), {}); }) == ErrorCode::non_finite);
  std::ranges::fill(large.values, 7e28f);
  std::ranges::fill(large.keys, 1e30f);
  std::ranges::fill(large.queries, 1e7f);
  CHECK(refusal([&] { cache.prefill(0, large.tokens(0, 40), {}); }) == std::nullopt);
  Outputs out(Small, 1);
  CHECK(refusal([&] { cache.prefill(1, plain.tokens(0, 40), {}); }) == std::nullopt);
  cache.decode(0, large.tokens(0, 1), out.rows(0, 1));
  for (const float x : out.values()) CHECK(x == Approx(7e28f));
  std::ranges::fill(large.queries, 1e8f);
  CHECK(refusal([&] { cache.attend(0, large.tokens(0, 1).q, out.rows(0, 1)); }) == ErrorCode::non_finite);
}

namespace {

/// Throws where a test says so; otherwise it does nothing.
struct Throws {
  const bool* now;
  void evict(Head<Throws>& head, Plan&) const {
    if (head.acts && *now) throw 1;
  }
};

}  // namespace

TEST_CASE("What attention kept for a call that was refused serves no later one") {
  const CacheShape shape{.query_heads = 4, .kv_heads = 1, .head_dim = 16};
  const RandomTokens text(shape, 400, 21);
  bool now = false;
  KVCache cache(shape, Throws{&now} | SnapKV{.budget = 96}), twin = cache.fork();
  for (KVCache<Pipeline<Throws, SnapKV>>* each : {&cache, &twin}) each->prefill(0, text.tokens(0, 200), {}, false);
  now = true;
  CHECK_THROWS_AS(cache.prefill(0, text.tokens(200, 200), {}), int);
  now = false;
  cache.compress();
  twin.compress();
  CHECK(cache.positions({0, 0}) == twin.positions({0, 0}));
}

namespace {

/// Gives slots classes of precision, then seals with streams that `fitted` gives.
struct Classes {
  std::vector<std::optional<Format>> classes, fitted;
  Scalar metadata = Scalar::f16, fitted_metadata = Scalar::f16;
  Streams streams(const std::vector<std::optional<Format>>& others, Scalar type) const {
    const Stream stream{.format = GroupQuant{.bits = 8, .axis = Axis::token, .group = 16, .metadata = type},
                        .batch = 16,
                        .classes = others};
    return {stream, stream};
  }
  void evict(Head<Classes>& head, Plan& plan) const {
    for (std::size_t slot = 0; slot < head.size() && !classes.empty(); ++slot)
      plan.precision(slot, static_cast<std::uint8_t>(slot % (classes.size() + 1)));
  }
  Streams quantize(HeadId, const CacheShape&) const { return streams(classes, metadata); }
  Streams fit(const Head<Classes>&) const { return streams(fitted, fitted_metadata); }
};
const GroupQuant Four{.bits = 4, .axis = Axis::token, .group = 16}, Two{.bits = 2, .axis = Axis::token, .group = 16};

}  // namespace

TEST_CASE("Streams that are fitted to a head must have its classes, and hold its rows") {
  OffsetTokens text(64, 1);
  KVCache classes(Small, Classes{{Four, Two}, {Four}});
  CHECK(refusal([&] { classes.prefill(0, text.tokens(0, 64), {}); }) == ErrorCode::invalid_argument);
  text.values[5] = 1e6f;
  KVCache rows(Small, Classes{{}, {}, Scalar::f32, Scalar::f16}, {.dense = {Scalar::f32}});
  CHECK(refusal([&] { rows.prefill(0, text.tokens(0, 64), {}); }) == ErrorCode::non_finite);
}

namespace own {

struct Nothing {};
std::shared_ptr<const Codec> make_codec(const Nothing&, Role, std::size_t) {
  return nullptr;
}
struct Shorter {};
std::shared_ptr<const Codec> make_codec(const Shorter&, Role role, std::size_t dim) {
  return kvc::make_codec(GroupQuant{.axis = Axis::token, .group = 8}, role, dim / 2);
}
template <class Description>
struct Sealed {
  std::optional<Description> format = Description{};
  Streams quantize(HeadId, const CacheShape&) const {
    Streams streams;
    streams.key.format = streams.value.format = format;
    return streams;
  }
};

}  // namespace own

TEST_CASE("A user's make_codec() that returns nothing, or a codec of other rows, is refused") {
  CHECK(refusal([] { KVCache(Small, own::Sealed<own::Nothing>{}); }) == ErrorCode::invalid_argument);
  CHECK(refusal([] { KVCache(Small, own::Sealed<own::Shorter>{}); }) == ErrorCode::shape_mismatch);
}

TEST_CASE("Streams whose sinks and recent slots are without end seal nothing and reserve little") {
  struct Endless {
    Stream stream;
    Streams quantize(HeadId, const CacheShape&) const { return {stream, stream}; }
  };
  const RandomTokens text(Small, 64, 13);
  constexpr std::size_t Most = std::numeric_limits<std::size_t>::max();
  for (const auto& [sinks, recent, batch] :
       {std::tuple{std::size_t{4}, Most, std::size_t{1}}, {Most, Most, 1}, {0, 0, Most}, {0, 0, Most / 2 + 1}}) {
    KVCache cache(Small, Endless{{.format = Four, .sinks = sinks, .recent = recent, .batch = batch}});
    prefill(cache, text, 0, 64);
    CHECK(cache.key_rows({0, 0}).sealed_rows() == 0);
    cache.reserve(100);
    CHECK(cache.stats().bytes() + cache.stats().spare < 1'000'000);
  }
}

namespace {

/// Shares one direction that two layers cannot share.
struct Shares {
  int how = 0;
  bool pairs(std::size_t layer, const CacheShape&) const { return layer == 1; }
  void merge(const Head<Shares>&, const Head<Shares>& here, PairPlan& plan) const {
    std::vector<float> direction(here.shape->head_dim, 0.25f);
    if (how == 0) direction[3] = std::numeric_limits<float>::quiet_NaN();
    if (how == 1) direction.pop_back();
    plan.share_key(how == 2 ? here.size() : 3, direction, how == 3 ? std::numeric_limits<float>::infinity() : 1, 1);
    if (how == 4) plan.share_key(3, direction, 1, 1);
  }
};

}  // namespace

TEST_CASE("The plan of a pair that no two layers can carry out is refused") {
  const RandomTokens text(Small, 30, 14);
  for (int how = 0; how < 5; ++how) {
    KVCache cache(Small, Shares{how});
    cache.prefill(0, text.tokens(0, 30), {});
    INFO("how " << how);
    CHECK(refusal([&] { cache.prefill(1, text.tokens(0, 30), {}); }) == ErrorCode::invalid_argument);
  }
}

TEST_CASE("MiniCache keeps what its norms cannot hold, and directions as exactly as the wider of its layers") {
  const OffsetTokens below(64, 600), here(64, 1);
  KVCache cache(Small, MiniCache{.t = 0, .start = 0, .retention = Retention::none});
  cache.prefill(0, below.tokens(0, 64), {});
  cache.prefill(1, here.tokens(0, 64), {});
  std::vector<float> k(64 * 16), v(64 * 16);
  cache.gather({0, 0}, {k.data(), 64, 16}, {v.data(), 64, 16});
  float worst = 0;
  for (std::size_t t = 0; t < 64; ++t)
    for (std::size_t c = 0; c < 16; ++c) worst = std::max(worst, std::abs(k[t * 16 + c] - below.keys[t * 32 + c]));
  CHECK(worst < 1e-3f);
}

TEST_CASE("Layers out of order are refused") {
  const RandomTokens text(Small, 20, 9);
  KVCache cache(Small, MiniCache{.start = 0});
  CHECK(refusal([&] { cache.prefill(1, text.tokens(0, 10), {}); }) == ErrorCode::invalid_argument);
  cache.prefill(0, text.tokens(0, 10), {});
  CHECK(refusal([&] { cache.prefill(1, text.tokens(0, 20), {}); }) == ErrorCode::invalid_argument);
  cache.prefill(1, text.tokens(0, 10), {});
  CHECK(cache.stats().seen == 10);
}

TEST_CASE("Rejected drafts leave no trace in positions, even where those have gaps") {
  const RandomTokens text(Small, 20, 10);
  KVCache cache(Small, Full{});
  prefill(cache, text, 0, 10);
  const std::vector<Position> far{20, 30, 40};
  Tokens drafts = text.tokens(10, 3);
  drafts.positions = far;
  Outputs out(Small, 3);
  for (std::size_t layer = 0; layer < 2; ++layer) cache.draft(layer, drafts, out.rows(0, 3));
  cache.accept(1);
  decode(cache, text, 13);
  CHECK(cache.positions({0, 0}).back() == 21);
  for (std::size_t layer = 0; layer < 2; ++layer) cache.draft(layer, text.tokens(14, 2), out.rows(0, 2));
  cache.accept(0);
  decode(cache, text, 16);
  CHECK(cache.positions({1, 1}).back() == 22);
}

TEST_CASE("Drafts and several tokens at once read what Quest selects, as single tokens do") {
  const RandomTokens text(Small, 310, 11);
  const Quest policy{.tokens = 48, .page = 16, .dense_layers = 0};
  KVCache one(Small, policy), several(Small, policy), drafting(Small, policy);
  for (CacheCore* cache :
       {static_cast<CacheCore*>(&one), static_cast<CacheCore*>(&several), static_cast<CacheCore*>(&drafting)})
    prefill(*cache, text, 0, 300);
  Outputs singles(Small, 3), together(Small, 3), drafts(Small, 3);
  for (std::size_t t = 0; t < 3; ++t) one.decode(0, text.tokens(300 + t, 1), singles.rows(t, 1));
  several.decode(0, text.tokens(300, 3), together.rows(0, 3));
  drafting.draft(0, text.tokens(300, 3), drafts.rows(0, 3));
  CHECK(singles == together);
  CHECK(singles == drafts);
}

TEST_CASE("compress() that one stage refuses changes no head of any layer") {
  const RandomTokens text(Small, 100, 12);
  KVCache cache(Small, Knorm{.budget = 40} | SnapKV{.budget = 20, .window = 8});
  for (std::size_t layer = 0; layer < 2; ++layer) cache.prefill(layer, text.tokens(0, 90), {}, false);
  for (std::size_t t = 90; t < 100; ++t) decode(cache, text, t);
  const auto refused = refusal([&] { cache.compress(); });
  for (const HeadId id : {HeadId{0, 0}, HeadId{0, 1}, HeadId{1, 0}, HeadId{1, 1}})
    CHECK(cache.positions(id).size() == (refused ? 100u : 20u));
}

TEST_CASE("Arguments that would let rows run into each other, or into nothing, are refused") {
  const RandomTokens text(Small, 20, 13);
  KVCache cache(Small, Full{});
  prefill(cache, text, 0, 10);
  std::vector<float> out(4 * 64);
  CHECK(refusal([&] { cache.decode(0, text.tokens(10, 2), {out.data(), 2, 64, 8}); }) == ErrorCode::shape_mismatch);
  CHECK(refusal([&] { cache.attend(0, text.tokens(10, 1).q, {nullptr, 1, 64}); }) == ErrorCode::shape_mismatch);
  std::vector<float> lse(3);
  CHECK(refusal([&] { cache.attend(0, text.tokens(10, 1).q, {out.data(), 1, 64}, lse); }) == ErrorCode::shape_mismatch);
  CacheCore* twice[] = {&cache, &cache};
  SerialExecutor serial;
  CHECK(refusal([&] {
          decode_batch(twice, 0, text.tokens(10, 2), {out.data(), 2, 64}, serial);
        }) == ErrorCode::invalid_argument);
  CHECK(cache.stats().seen == 10);
}

TEST_CASE("An infinite external score, which would protect its token, is refused") {
  const RandomTokens text(Small, 20, 14);
  KVCache cache(Small, ExternalScores{.budget = 10});
  std::vector<float> scores(20 * 2, 1.0f);
  scores[7] = std::numeric_limits<float>::infinity();
  Tokens tokens = text.tokens(0, 20);
  tokens.scores = scores;
  CHECK(refusal([&] { cache.prefill(0, tokens, {}); }) == ErrorCode::non_finite);
  scores[7] = std::numeric_limits<float>::quiet_NaN();  // loses against every other
  CHECK(refusal([&] { cache.prefill(0, tokens, {}); }) == std::nullopt);
  CHECK(cache.positions({0, 0}).size() == 10);
}

TEST_CASE("Sizes without an end are refused before memory is taken") {
  constexpr std::size_t Endless = std::numeric_limits<std::size_t>::max();
  KVCache cache(Small, Full{});
  CHECK(refusal([&] { cache.reserve(Endless); }) == ErrorCode::invalid_argument);
  CHECK(refusal([&] { cache.make_room(Endless); }) == ErrorCode::invalid_argument);
  CacheShape shape = Small;
  shape.layers = std::size_t{1} << 62;
  CHECK(refusal([&] { KVCache refused(shape, Full{}); }) == ErrorCode::invalid_argument);
  shape = Small;
  shape.head_dim = std::size_t{1} << 61;
  CHECK(refusal([&] { KVCache refused(shape, Full{}); }) == ErrorCode::invalid_argument);
  shape = Small;
  shape.rotary.inv_freq = {1.0f, std::numeric_limits<float>::quiet_NaN()};
  CHECK(refusal([&] { KVCache refused(shape, Full{}); }) == ErrorCode::invalid_argument);
}

TEST_CASE("A compensation token that was truncated away is not revived by a new token in its place") {
  const RandomTokens text(Small, 40, 15);
  const RazorAttention policy{.heads = HeadTable{}, .budget = Budget(10)};
  KVCache cache(Small, policy);
  prefill(cache, text, 0, 30);
  static_cast<void>(cache.truncate(4));
  std::vector<Position> positions{4, 10, 11, 12, 13, 14, 15, 16, 17, 18};
  Tokens tokens = text.tokens(30, 10);
  tokens.positions = positions;
  for (std::size_t layer = 0; layer < 2; ++layer) cache.prefill(layer, tokens, {});
  // Four sinks, the mean of what went, and the newest five: the mean stands for tokens 4 to 14 of the new text only.
  CHECK(cache.positions({0, 0}).size() == 10);
  const auto& state = cache.state<RazorAttention>({0, 0});
  CHECK(state.tokens() == 5);
}
