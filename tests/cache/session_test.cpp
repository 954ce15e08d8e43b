#include "catch_shim.hpp"

#include <array>
#include <string>
#include <tuple>

#include "kvc/policies/all.hpp"
#include "kvc/session/checksum.hpp"
#include "kvc/storage/row_store.hpp"
#include "support/all_policies.hpp"
#include "support/script.hpp"
#include "support/sequence.hpp"
#include "support/session_bytes.hpp"
#include "support/twins.hpp"

// A cache that was saved and loaded again is the cache that was saved.

using namespace kvc;
using namespace support;

namespace {

const CacheShape Shape = small_shape();

/// Saves `cache`, loads a cache of `policy` from that, and compares the two now and later.
template <Composable P>
void check_round_trip(CacheCore& cache, const P& policy, const CacheOptions& options, const LayeredTokens& text,
                      std::size_t at) {
  const Bytes session = saved(cache);
  KVCache<P> loaded(cache.shape(), policy, options);
  CHECK(load_from(loaded, session) == session.size());
  CHECK(difference({picture_of(loaded)}, {picture_of(cache)}) == "");
  CHECK(loaded.stats().slack == cache.stats().slack);
  CHECK(loaded.stats().metadata <= cache.stats().metadata);
  CHECK((saved(loaded) == session));
  check_same_future(loaded, cache, text, at);
}

}  // namespace

TEST_CASE("Every policy goes on from a loaded session bit for bit as if nothing had happened", "[session]") {
  const LayeredTokens text(Shape, 300, 71);
  for (const PolicyCase& entry : all_policies())
    for (const std::size_t steps : {0u, 3u, 70u}) {
      INFO(entry.text << ", saved after " << steps << " generated tokens");
      KVCache cache(Shape, entry.policy());
      feed(cache, text, 100, steps);
      check_round_trip(cache, entry.policy(), {}, text, 100 + steps);
    }
}

TEST_CASE("An empty cache, and one with a single token, can be saved and loaded", "[session]") {
  const LayeredTokens text(Shape, 120, 72);
  for (const char* policy : {"full", "kivi:group=16,residual=16", "h2o:budget=30", "mini_cache:start=0"})
    for (const std::size_t prompt : {0u, 1u}) {
      INFO(policy << ", prompt of " << prompt);
      KVCache cache(Shape, AnyPolicy::parse(policy));
      if (prompt != 0) feed(cache, text, prompt, 0);
      check_round_trip(cache, AnyPolicy::parse(policy), {}, text, prompt);
    }
}

TEST_CASE("A script of all calls gives the same answers if the cache is saved and loaded after every one",
          "[session]") {
  const LayeredTokens text(Shape, 200, 73);
  SerialExecutor executor;
  for (const auto& [policy, compresses] : std::initializer_list<std::pair<const char*, bool>>{
           {"full", true},
           {"full:bits=4,group=16", true},
           {"kivi:bits=4,group=16,residual=16", true},
           {"streaming_llm:budget=40,positions=in_cache", true},
           {"h2o:budget=40 | kivi:group=16,residual=16", true},
           {"h2o:budget=60 | quest:tokens=24,page=8,dense_layers=0", true},
           {"snapkv:budget=40,window=8 | kivi:group=16,residual=16", false},
           {"snapkv:budget=40,window=8 | think:window=8,pruned=0.5", false},
           {"razor_attention:heads=none,budget=40 | kivi:group=16,residual=16", true},
           {"mini_cache:start=0", true},
           {"streaming_llm:budget=40 | mini_cache:start=0 | kivi:group=16,residual=16", true},
           {"d2o:budget=30,layer_budgets=false", true},
           {"refit:policy=knorm,budget=40,bits=4,group=16", false}}) {
    INFO(policy);
    const Stages stages = AnyPolicy::parse(policy).stages();
    World subject(Shape, stages, {}, 200), twin(Shape, stages, {}, 200);
    const std::vector<Step> steps = whole_script(text, executor, compresses);
    std::size_t saves = 0;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      INFO("call " << i << ": " << steps[i].name);
      steps[i].run(subject);
      steps[i].run(twin);
      REQUIRE((subject.out == twin.out));
      for (CacheCore& cache : subject.caches) try {
          const Bytes session = saved(cache);
          CacheCore loaded(Shape, stages);
          load_from(loaded, session);
          cache = std::move(loaded);
          ++saves;
        } catch (const Error& error) {
          REQUIRE(error.code() == ErrorCode::invalid_argument);  // a prompt is open, or drafts wait
        }
      REQUIRE(difference(pictures_of(subject), pictures_of(twin)) == "");
    }
    CHECK(saves > steps.size());
  }
}

TEST_CASE("Rows that are wide, sinks in blocks of their own and large multiplicities survive", "[session]") {
  LayeredTokens text(Shape, 300, 74);
  SECTION("keys that f16 has too few digits for") {
    KVCache cache(Shape, KIVI{.group = 16, .residual = 16});
    const Tokens plain = text.tokens(0, 0, 40);
    std::vector<float> keys(plain.k.data, plain.k.data + plain.k.count * plain.k.dim);
    keys[3] = 300;
    for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
      Tokens tokens = plain;
      tokens.k.data = keys.data();
      cache.prefill(layer, tokens, {});
    }
    REQUIRE(cache.key_rows({0, 0}).is_wide());
    REQUIRE(!cache.value_rows({0, 0}).is_wide());
    check_round_trip(cache, cache.policy(), {}, text, 40);
  }
  SECTION("five sinks before sealed rows") {
    KVCache cache(Shape, KIVI{.group = 16, .residual = 16, .sinks = 5});
    feed(cache, text, 100, 20);
    check_round_trip(cache, cache.policy(), {}, text, 120);
  }
  SECTION("slots that stand for more tokens than f16 counts") {
    struct Heavy {
      void evict(Head<Heavy>& head, Plan& plan) const {
        if (head.size() > 2) plan.multiplicity(1, 4097.0f);
      }
    };
    KVCache cache(Shape, Heavy{});
    feed(cache, text, 30, 5);
    check_round_trip(cache, cache.policy(), {}, text, 35);
  }
  SECTION("slots of several classes of precision, in another element type") {
    struct Classes {
      Streams quantize(HeadId, const CacheShape&) const {
        const GroupQuant coarse{.bits = 2, .group = 16}, fine{.bits = 8, .group = 16};
        return {.key = {.format = coarse, .batch = 16, .classes = {fine, std::nullopt}}, .value = {}};
      }
      void evict(Head<Classes>& head, Plan& plan) const {
        for (std::size_t slot = 0; slot < head.size(); ++slot)
          plan.precision(slot, static_cast<std::uint8_t>(head.positions[slot] % 3));
      }
    };
    const CacheOptions options{.dense = {Scalar::bf16}};
    KVCache cache(Shape, Classes{}, options);
    feed(cache, text, 120, 30);
    check_round_trip(cache, cache.policy(), options, text, 150);
  }
  SECTION("positions far apart") {
    KVCache cache(Shape, StreamingLLM{.budget = 30});
    for (const Position first : {5, 10'000, 1'000'000})
      for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
        std::vector<Position> positions(20);
        for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = first + 300 * static_cast<Position>(i);
        Tokens tokens = text.tokens(layer, 0, 20);
        tokens.positions = positions;
        cache.prefill(layer, tokens, {});
      }
    check_round_trip(cache, cache.policy(), {}, text, 100);
  }
}

namespace {

/// Has a State of every kind of field.
struct Memorious {
  enum class Mood : std::uint8_t { calm, moody };
  struct Inner {
    float weight = 0;
    bool set = false;
    auto fields() { return std::tie(weight, set); }
  };
  struct Slot {
    int seen = 0;
    bool odd = false;
    auto fields() { return std::tie(seen, odd); }
  };
  struct State {
    std::size_t passes = 0;
    int balance = 0;
    double sum = 0;
    Mood mood = Mood::calm;
    Inner inner = {};
    std::vector<float> list = {};
    std::vector<std::size_t> sizes = {};
    std::vector<Inner> inners = {};
    std::array<std::int64_t, 2> pair = {};
    auto fields() { return std::tie(passes, balance, sum, mood, inner, list, sizes, inners, pair); }
    friend bool operator==(const State& a, const State& b) {
      return a.passes == b.passes && a.balance == b.balance && a.sum == b.sum && a.mood == b.mood &&
             a.inner.weight == b.inner.weight && a.inner.set == b.inner.set && a.list == b.list && a.sizes == b.sizes &&
             a.inners.size() == b.inners.size() && a.pair == b.pair;
    }
  };
  void observe(Head<Memorious>& head, const Observation&) const {
    State& state = *head.state;
    ++state.passes;
    --state.balance;
    state.sum += 0.1;
    state.mood = Mood::moody;
    state.inner = {.weight = 0.5f, .set = true};
    state.list.push_back(static_cast<float>(state.sum));
    state.sizes.push_back(head.size());
    state.inners.push_back(state.inner);
    state.pair[1] = -7;
    for (std::size_t i = 0; i < head.slots.size(); ++i) head.slots[i] = {head.slots[i].seen + 1, i % 2 == 1};
  }
};

}  // namespace

TEST_CASE("Slots and States come back field by field", "[session]") {
  const LayeredTokens text(Shape, 60, 75);
  KVCache cache(Shape, Memorious{}), loaded(Shape, Memorious{});
  feed(cache, text, 30, 7);
  load_from(loaded, saved(cache));
  for (const HeadId id : Sequence::heads(Shape)) {
    CHECK(cache.state<Memorious>(id).passes == 8);
    CHECK(loaded.state<Memorious>(id) == cache.state<Memorious>(id));
    const auto a = cache.slots<Memorious>(id), b = loaded.slots<Memorious>(id);
    REQUIRE(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i) CHECK((a[i].seen == b[i].seen && a[i].odd == b[i].odd));
  }
}

TEST_CASE("Layers are saved and loaded apart, and together they are the cache", "[session]") {
  const LayeredTokens text(Shape, 200, 76);
  const auto policy = AnyPolicy::parse("h2o:budget=40 | kivi:group=16,residual=16");
  KVCache cache(Shape, policy), loaded(Shape, policy);
  feed(cache, text, 100, 20);
  for (const std::size_t layer : {1u, 0u}) {
    const SessionOptions options{.layers = {layer, 1}};
    load_from(loaded, saved(cache, options), options);
  }
  check_same_future(loaded, cache, text, 120);
}

TEST_CASE("What follows a session in its source stays there, however few bytes the source gives at once", "[session]") {
  const LayeredTokens text(Shape, 200, 77);
  const auto policy = AnyPolicy::parse("snapkv:budget=40,window=8");
  KVCache first(Shape, policy), second(Shape, policy), loaded(Shape, policy);
  feed(first, text, 100, 0);
  feed(second, text, 100, 5);
  Bytes both = saved(first);
  const std::size_t length = both.size();
  const Bytes other = saved(second);
  both.insert(both.end(), other.begin(), other.end());
  BytesSource source(both, 7);
  CHECK(load(loaded, source) == length);
  CHECK(source.left() == other.size());
  CHECK(difference({picture_of(loaded)}, {picture_of(first)}) == "");
  CHECK(load(loaded, source) == other.size());
  CHECK(difference({picture_of(loaded)}, {picture_of(second)}) == "");
}

TEST_CASE("Loading into a cache that was used leaves its forks as they are", "[session]") {
  const LayeredTokens text(Shape, 200, 78);
  KVCache saved_one(Shape, KIVI{.group = 16, .residual = 16}), used(Shape, KIVI{.group = 16, .residual = 16});
  feed(saved_one, text, 50, 10);
  feed(used, text, 90, 3);
  const auto fork = used.fork();
  const Picture before = picture_of(fork);
  load_from(used, saved(saved_one));
  CHECK(difference({picture_of(fork)}, {before}) == "");
  CHECK(difference({picture_of(used)}, {picture_of(saved_one)}) == "");
  check_same_future(used, saved_one, text, 60);
}

TEST_CASE("The checksum is the one that its description gives", "[session]") {
  // Computed by another program, in Python, from the description.
  const auto sum_of = [](std::span<const unsigned char> bytes, std::size_t at_once) {
    session::Checksum sum;
    for (std::size_t at = 0; at < bytes.size(); at += at_once)
      sum.add(std::as_bytes(bytes.subspan(at, std::min(at_once, bytes.size() - at))));
    return sum.value();
  };
  std::array<unsigned char, 200> numbers;
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<unsigned char>(i);
  const unsigned char letters[] = {'a', 'b', 'c'};
  CHECK(sum_of({}, 1) == 0x24B7739CCD2587D5u);
  CHECK(sum_of(letters, 3) == 0xD70C75B2B02C9E62u);
  for (const std::size_t at_once : {1u, 5u, 63u, 64u, 65u, 128u, 200u})
    CHECK(sum_of(numbers, at_once) == 0x5280B70846AD7A03u);
}
