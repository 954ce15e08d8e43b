#include "catch_shim.hpp"

#include <memory>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/policies/kivi.hpp"
#include "kvc/policies/quest.hpp"
#include "kvc/policies/streaming_llm.hpp"
#include "support/naive_cache.hpp"
#include "support/random_tokens.hpp"

// What the cache promises to whoever writes a policy: every feed and every verb against the oracle.

using namespace kvc;
using support::Outputs;
using support::RandomTokens;

namespace {

constexpr CacheOptions Exact{.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact};
const CacheShape Small{.query_heads = 6, .kv_heads = 2, .head_dim = 16};

/// What the policies of this file saw, per KV head.
struct Seen {
  Event event = Event::decode;
  std::size_t first_new = 0, count = 0;
  std::vector<std::vector<float>> attention, queries, unrotated;
  std::vector<float> scores;
};
struct Log {
  Seen heads[2];
};

std::vector<std::vector<float>> rows_of(const ConstRows& rows) {
  std::vector<std::vector<float>> copy;
  for (std::size_t row = 0; row < rows.count; ++row) copy.emplace_back(rows[row].begin(), rows[row].end());
  return copy;
}

/// Writes down what observe() is told; drops slot 5 of every decode step if it evicts.
struct Recorder {
  std::shared_ptr<Log> log;
  Feed feed = Feed::sums;
  bool evicts = false;
  std::size_t window = 0;
  bool wants_scores = false;

  Needs needs() const {
    return {.prompt = feed,
            .decode = feed,
            .probe = feed,
            .query_window = window,
            .queries = true,
            .external_scores = wants_scores};
  }
  void observe(Head<Recorder>& head, const Observation& seen) const {
    log->heads[head.id.head] = {seen.event,
                                seen.first_new,
                                seen.queries_count,
                                rows_of(seen.attention),
                                rows_of(seen.queries),
                                rows_of(seen.unrotated_queries),
                                {seen.scores.begin(), seen.scores.end()}};
  }
  void evict(Head<Recorder>& head, Plan& plan) const {
    if (!evicts || head.event != Event::decode || head.size() < 10) return;
    plan.range(0, 5);
    plan.range(6, head.size());
  }
};

std::vector<bool> without_slot_5(const naive::Head& head, Event event) {
  std::vector<bool> stays(head.size(), true);
  if (event == Event::decode && head.size() >= 10) stays[5] = false;
  return stays;
}

/// The largest difference between what a head was told and the model's last pass.
double attention_distance(const Seen& seen, const naive::Cache& model, std::size_t head, Feed feed, std::size_t group) {
  const auto& rows = model.attention(0, head);
  std::vector<naive::Row> expected;
  if (feed == Feed::rows)
    expected = rows;
  else
    expected.assign(feed == Feed::sums ? group : 1, naive::Row(rows[0].size()));
  if (feed != Feed::rows)
    for (std::size_t row = 0; row < rows.size(); ++row)
      for (std::size_t slot = 0; slot < rows[row].size(); ++slot)
        expected[row % expected.size()][slot] += rows[row][slot];
  if (seen.attention.size() != expected.size()) return HUGE_VAL;
  double worst = 0;
  for (std::size_t row = 0; row < expected.size(); ++row)
    worst = std::max(worst, naive::distance(seen.attention[row], expected[row]));
  return worst;
}

/// Feeds parts of the given sizes (positive: prompt chunk, the last one ends it; 0: a decode step of one token).
template <class Policy>
void check_observations(const Policy& policy, const std::shared_ptr<Log>& log, Feed feed, naive::Cache& model,
                        const CacheShape& shape, const std::vector<std::size_t>& parts) {
  KVCache cache(shape, policy, Exact);
  const RandomTokens text(shape, 700, 31);
  std::size_t at = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::size_t count = std::max<std::size_t>(1, parts[i]);
    const bool decodes = parts[i] == 0, last = i + 1 == parts.size() || parts[i + 1] == 0;
    const Event event = decodes ? Event::decode : last ? Event::prompt_end : Event::prompt_chunk;
    Outputs out(shape, count);
    if (decodes)
      cache.decode(0, text.tokens(at, count), out.rows(0, count));
    else
      cache.prefill(0, text.tokens(at, count), out.rows(0, count), last);
    const std::size_t before = model.head(0, 0).size();
    CHECK(naive::distance(out.values(), model.pass(0, text.tokens(at, count), event)) < 2e-5);
    for (std::size_t head = 0; head < 2; ++head) {
      INFO("part " << i << ", head " << head);
      CHECK(log->heads[head].event == event);
      CHECK(log->heads[head].first_new == before);
      CHECK(log->heads[head].count == count);
      const double added_up = feed == Feed::group_sums ? double(shape.group()) : 1.0;  // so many times the rounding
      CHECK(attention_distance(log->heads[head], model, head, feed, shape.group()) < 3e-5 * added_up);
    }
    at += count;
  }
}

}  // namespace

TEST_CASE("Observed sums and rows are the oracle's attention: prompt whole or in chunks, decode, after evictions") {
  for (Feed feed : {Feed::group_sums, Feed::sums, Feed::rows})
    for (bool evicts : {false, true})
      for (const std::vector<std::size_t>& parts :
           {std::vector<std::size_t>{300, 0, 0, 0}, {7, 90, 1, 33, 0, 0, 0, 0, 20, 5, 0}}) {
        auto log = std::make_shared<Log>();
        naive::Cache model(Small, {}, Scalar::f32);
        if (evicts) model.keep = without_slot_5;
        INFO("feed " << static_cast<int>(feed) << ", evicts " << evicts);
        check_observations(Recorder{.log = log, .feed = feed, .evicts = evicts}, log, feed, model, Small, parts);
      }
}

TEST_CASE("Observed attention is the oracle's at in-cache positions and over sealed rows") {
  auto log = std::make_shared<Log>();
  CacheShape shape = Small;
  shape.rotary = Rotary::standard(16);
  naive::Cache placed(shape, {}, Scalar::f32);
  placed.in_cache = true;
  placed.keep = [](const naive::Head& head, Event event) {
    std::vector<bool> stays = without_slot_5(head, event);
    if (event == Event::prompt_chunk) return stays;
    const std::size_t left = head.size() - (event == Event::decode && head.size() >= 10 ? 1 : 0);
    for (std::size_t slot = 0, number = 0; slot < head.size(); ++slot)
      if (stays[slot] && number++ >= 4 && left > 60 && number + 56 <= left) stays[slot] = false;
    return stays;
  };
  check_observations(
      Recorder{.log = log, .evicts = true} | StreamingLLM{.budget = 60, .positions = Positions::in_cache}, log,
      Feed::sums, placed, shape, {50, 40, 0, 0, 0, 30, 0, 0});

  const KIVI kivi{.bits = 4, .group = 16, .residual = 32, .metadata = Scalar::f32};
  for (Feed feed : {Feed::group_sums, Feed::sums, Feed::rows}) {
    naive::Cache sealed(Small, kivi.quantize({}, {}), Scalar::f32);
    check_observations(Recorder{.log = log, .feed = feed} | kivi, log, feed, sealed, Small, {100, 0, 0, 0, 40, 0, 0});
  }
}

TEST_CASE("Queries come as the engine gave them and un-rotated, external scores per head") {
  auto log = std::make_shared<Log>();
  CacheShape shape = Small;
  shape.rotary = Rotary::standard(16);
  KVCache cache(shape, Recorder{.log = log, .wants_scores = true}, Exact);
  const RandomTokens text(shape, 20, 32);
  Tokens tokens = text.tokens(0, 20);
  const std::vector<float> scores = support::Dice(1).row(40);
  tokens.scores = scores;
  Outputs out(shape, 20);
  cache.prefill(0, tokens, out.rows(0, 20));
  for (std::size_t head = 0; head < 2; ++head) {
    const Seen& seen = log->heads[head];
    REQUIRE(seen.queries.size() == 60);
    REQUIRE(seen.scores.size() == 20);
    double worst = 0;
    for (std::size_t row = 0; row < 60; ++row) {
      const auto given = tokens.q[row / 3].subspan((head * 3 + row % 3) * 16, 16);
      CHECK(std::equal(given.begin(), given.end(), seen.queries[row].begin()));
      const naive::Row back = naive::turned(naive::Row(given.begin(), given.end()), shape.rotary, -double(row / 3));
      worst = std::max(worst, naive::distance(seen.unrotated[row], back));
    }
    CHECK(worst < 1e-5);
    for (std::size_t t = 0; t < 20; ++t) CHECK(seen.scores[t] == scores[t * 2 + head]);
  }
  // Drafted tokens bring theirs along until they are accepted.
  Tokens one = text.tokens(0, 1);
  one.scores = std::span<const float>(scores).first(2);
  cache.draft(0, one, out.rows(0, 1));
  cache.accept(1);
  CHECK(log->heads[1].scores == std::vector<float>{scores[1]});
}

namespace {

/// Keeps what window_attention() says at the end of a prompt, or window_sums().
struct WindowReader {
  std::shared_ptr<Log> log;
  std::size_t window = 16;
  bool sums = false;
  Needs needs() const { return {.query_window = window}; }
  void evict(Head<WindowReader>& head, Plan&) const {
    if (head.event == Event::prompt_end)
      log->heads[head.id.head].attention = rows_of(sums ? head.window_sums(window) : head.window_attention(window));
  }
};

}  // namespace

TEST_CASE("window_attention is the oracle's attention of the prompt's last queries, however the prompt was cut") {
  for (std::size_t chunk : {200u, 64u, 7u, 1u}) {
    auto log = std::make_shared<Log>();
    KVCache cache(Small, WindowReader{log}, Exact);
    const RandomTokens text(Small, 200, 33);
    for (std::size_t first = 0; first < 200; first += chunk) {
      const std::size_t count = std::min<std::size_t>(chunk, 200 - first);
      cache.prefill(0, text.tokens(first, count), {}, first + count == 200);
    }
    naive::Cache model(Small, {}, Scalar::f32);
    model.pass(0, text.tokens(0, 200), Event::prompt_end);
    for (std::size_t head = 0; head < 2; ++head) {
      const auto& rows = model.attention(0, head);
      REQUIRE(log->heads[head].attention.size() == 48);
      double worst = 0;
      for (std::size_t row = 0; row < 48; ++row)
        worst = std::max(worst, naive::distance(log->heads[head].attention[row], rows[rows.size() - 48 + row]));
      CHECK(worst < 1e-5);
    }
  }
}

TEST_CASE(
    "window_sums add up the oracle's attention of the last queries, to the same bits however the prompt was cut") {
  const RandomTokens text(Small, 700, 34);
  naive::Cache model(Small, {}, Scalar::f32);
  model.pass(0, text.tokens(0, 700), Event::prompt_end);
  std::vector<std::vector<std::vector<float>>> whole;
  for (std::size_t chunk : {700u, 650u, 690u, 64u, 1u}) {  // one pass holds the window, or its end alone
    for (bool wants_output : {true, false}) {
      auto log = std::make_shared<Log>();
      KVCache cache(Small, WindowReader{.log = log, .window = 50, .sums = true}, Exact);
      Outputs out(Small, 700);
      for (std::size_t first = 0; first < 700; first += chunk) {
        const std::size_t count = std::min<std::size_t>(chunk, 700 - first);
        cache.prefill(0, text.tokens(first, count), wants_output ? out.rows(first, count) : Rows<float>{},
                      first + count == 700);
      }
      for (std::size_t head = 0; head < 2; ++head) {
        const auto& sums = log->heads[head].attention;
        REQUIRE(sums.size() == 3);
        if (whole.size() <= head) whole.push_back(sums);
        CHECK(sums == whole[head]);
        const auto& rows = model.attention(0, head);
        double worst = 0;
        for (std::size_t member = 0; member < 3; ++member) {
          naive::Row expected(700, 0.0);
          for (std::size_t row = rows.size() - 150 + member; row < rows.size(); row += 3)
            for (std::size_t slot = 0; slot < 700; ++slot) expected[slot] += rows[row][slot];
          worst = std::max(worst, naive::distance(sums[member], expected));
        }
        CHECK(worst < 1e-4);
      }
    }
  }
}

TEST_CASE("window_sums are those of the slots that an earlier stage left") {
  auto log = std::make_shared<Log>();
  KVCache cache(Small, StreamingLLM{.budget = 60} | WindowReader{.log = log, .window = 50, .sums = true}, Exact);
  const RandomTokens text(Small, 200, 35);
  Outputs out(Small, 200);
  cache.prefill(0, text.tokens(0, 200), out.rows(0, 200));
  for (std::size_t head = 0; head < 2; ++head) {
    REQUIRE(log->heads[head].attention.size() == 3);
    for (const auto& sums : log->heads[head].attention) {
      REQUIRE(sums.size() == 60);
      double all = 0;
      for (const float sum : sums) all += double(sum);
      CHECK(std::fabs(all - 50) < 1e-3);
    }
  }
}

namespace {

/// Razor's way: after every pass the oldest slot beyond 20 is folded into slot 0, which stands for all that went.
struct Compensator {
  static double share(double tokens) { return 1 / (tokens + 1); }
  void evict(Head<Compensator>& head, Plan& plan) const {
    if (head.event == Event::prompt_chunk || head.size() <= 20) return;
    const float tokens = head.multiplicity.empty() ? 1 : head.multiplicity[0];
    const auto weight = static_cast<float>(share(double(tokens)));
    const ConstRows keys = head.keys(), values = head.values();
    for (std::size_t c = 0; c < keys.dim; ++c) plan.key(0)[c] += weight * (keys[1][c] - keys[0][c]);
    for (std::size_t c = 0; c < values.dim; ++c) plan.value(0)[c] += weight * (values[1][c] - values[0][c]);
    plan.multiplicity(0, tokens + 1);
    plan.first(1);
    plan.range(2, head.size());
  }
};

void compensate(naive::Cache& model, std::size_t head, Scalar dense) {
  naive::Head& slots = model.head(0, head);
  if (slots.size() <= 20) return;
  const double weight = Compensator::share(slots[0].multiplicity);
  for (std::size_t c = 0; c < slots[0].key.values.size(); ++c) {
    slots[0].key.values[c] =
        naive::rounded(dense, slots[0].key.values[c] + weight * (slots[1].key.values[c] - slots[0].key.values[c]));
    slots[0].value.values[c] = naive::rounded(
        dense, slots[0].value.values[c] + weight * (slots[1].value.values[c] - slots[0].value.values[c]));
  }
  slots[0].multiplicity += 1;
  slots.erase(slots.begin() + 1);
}

}  // namespace

TEST_CASE("A policy that rewrites slots and sets multiplicities computes the oracle's attention") {
  KVCache cache(Small, Compensator{}, Exact);
  naive::Cache model(Small, {}, Scalar::f32);
  const RandomTokens text(Small, 120, 34);
  for (std::size_t t = 0; t < 120; ++t) {
    Outputs out(Small, 1);
    cache.decode(0, text.tokens(t, 1), out.rows(0, 1));
    CHECK(naive::distance(out.values(), model.pass(0, text.tokens(t, 1), Event::decode)) < 3e-5);
    for (std::size_t head = 0; head < 2; ++head) compensate(model, head, Scalar::f32);
  }
  CHECK(model.head(0, 1)[0].multiplicity == 101);
}

TEST_CASE("Multiplicities are seen in what is observed") {
  auto log = std::make_shared<Log>();
  KVCache cache(Small, Compensator{} | Recorder{.log = log}, Exact);
  naive::Cache model(Small, {}, Scalar::f32);
  const RandomTokens text(Small, 60, 35);
  for (std::size_t t = 0; t < 60; ++t) {
    Outputs out(Small, 1);
    cache.decode(0, text.tokens(t, 1), out.rows(0, 1));
    model.pass(0, text.tokens(t, 1), Event::decode);
    CHECK(attention_distance(log->heads[1], model, 1, Feed::sums, 3) < 3e-5);
    for (std::size_t head = 0; head < 2; ++head) compensate(model, head, Scalar::f32);
  }
}

TEST_CASE("A sealed slot that is rewritten reads as rewritten") {
  const KIVI kivi{.bits = 8, .group = 16, .residual = 16, .metadata = Scalar::f32};
  KVCache cache(Small, Compensator{} | kivi, Exact);
  naive::Cache model(Small, {}, Scalar::f32);
  const RandomTokens text(Small, 100, 36);
  for (std::size_t t = 0; t < 100; ++t) {
    Outputs out(Small, 1);
    cache.decode(0, text.tokens(t, 1), out.rows(0, 1));
    // The model keeps everything dense, and eight bits are close to that: half a step of a group that spans 12 is 0.024.
    CHECK(naive::distance(out.values(), model.pass(0, text.tokens(t, 1), Event::decode)) < 0.02);
    for (std::uint32_t head = 0; head < 2; ++head) {
      compensate(model, head, Scalar::f32);
      const std::size_t slots = cache.positions({0, head}).size();
      std::vector<float> keys(slots * Small.head_dim), values(keys.size());
      cache.gather({0, head}, {keys.data(), slots, Small.head_dim}, {values.data(), slots, Small.head_dim});
      const naive::Slot& rewritten = model.head(0, head)[0];
      keys.resize(Small.head_dim), values.resize(Small.head_dim);
      CHECK(naive::distance(keys, rewritten.key.values) < 0.03);
      CHECK(naive::distance(values, rewritten.value.values) < 0.03);
    }
  }
}

namespace {

/// Attends to every third slot and the newest.
struct EveryThird {
  void select(const Head<EveryThird>& head, ConstRows, Selection& selection) const {
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      if (slot % 3 == 0 || slot + 1 == head.size()) selection.range(slot, slot + 1);
  }
};

template <class Policy>
void check_selection(const Policy& policy, naive::Cache& model) {
  KVCache cache(Small, policy, Exact);
  const RandomTokens text(Small, 700, 37);
  cache.prefill(0, text.tokens(0, 600), {});
  model.append(0, text.tokens(0, 600));
  model.act(0, Event::prompt_end);
  for (std::size_t t = 600; t < 640; ++t) {
    Outputs out(Small, 1);
    cache.decode(0, text.tokens(t, 1), out.rows(0, 1));
    model.append(0, text.tokens(t, 1));
    std::vector<double> expected;
    for (std::size_t q = 0; q < 6; ++q) {
      const naive::Head& slots = model.head(0, q / 3);
      std::vector<bool> selected(slots.size());
      for (std::size_t slot = 0; slot < slots.size(); ++slot)
        selected[slot] = slot % 3 == 0 || slot + 1 == slots.size();
      const auto answer = model.attend_one(slots, model.query(text.tokens(t, 1).q[0], q), slots.size(), 0, selected);
      expected.insert(expected.end(), answer.out.begin(), answer.out.end());
    }
    model.act(0, Event::decode);
    INFO("token " << t);
    CHECK(naive::distance(out.values(), expected) < 3e-5);
  }
}

}  // namespace

TEST_CASE("A selecting policy attends to the slots it chose and to nothing else") {
  naive::Cache everything(Small, {}, Scalar::f32);
  check_selection(EveryThird{}, everything);
}

TEST_CASE("A selecting policy never sees slots that another one evicted, sealed or dense") {
  naive::Cache model(Small, {}, Scalar::f32);
  model.keep = [](const naive::Head& head, Event event) {
    std::vector<bool> stays(head.size(), true);
    if (event == Event::decode) stays[5] = false;
    return stays;
  };
  auto log = std::make_shared<Log>();
  check_selection(Recorder{.log = log, .feed = Feed::none, .evicts = true} | EveryThird{}, model);

  const KIVI kivi{.bits = 8, .group = 16, .residual = 32, .metadata = Scalar::f32};
  naive::Cache sealed(Small, kivi.quantize({}, {}), Scalar::f32);
  sealed.keep = model.keep;
  check_selection(Recorder{.log = log, .feed = Feed::none, .evicts = true} | EveryThird{} | kivi, sealed);
}

namespace {

/// Keeps the newest slots of a head, as many as it was allocated.
template <class Policy>
void keep_newest(Head<Policy>& head, Plan& plan) {
  if (head.event != Event::prompt_chunk && head.size() > head.budget) plan.last(head.budget);
}
/// Head h of every layer gets 10 + 3 h slots.
struct UnevenInLayer {
  Budget budget = 100;
  void allocate(Layer<UnevenInLayer> heads, std::span<std::size_t> budgets) const {
    for (std::size_t h = 0; h < heads.size(); ++h) budgets[h] = 10 + 3 * h;
  }
  void evict(Head<UnevenInLayer>& head, Plan& plan) const { keep_newest(head, plan); }
};
/// Head h of the whole cache gets 10 + 3 h slots.
struct UnevenInCache {
  Budget budget = 100;
  void allocate_all(kvc::Cache<UnevenInCache> heads, std::span<std::size_t> budgets) const {
    for (std::size_t h = 0; h < heads.size(); ++h) budgets[h] = 10 + 3 * h;
  }
  void evict(Head<UnevenInCache>& head, Plan& plan) const { keep_newest(head, plan); }
};

}  // namespace

TEST_CASE("Budgets that a policy allocates over a layer, or over the cache, are the slots that its heads keep") {
  const CacheShape shape{.layers = 3, .query_heads = 4, .kv_heads = 2, .head_dim = 16};
  const RandomTokens text(shape, 110, 38);
  const auto slots_after = [&](auto policy) {
    KVCache cache(shape, policy, Exact);
    for (std::size_t layer = 0; layer < 3; ++layer) cache.prefill(layer, text.tokens(0, 100), {});
    for (std::size_t t = 100; t < 110; ++t)
      for (std::size_t layer = 0; layer < 3; ++layer) {
        Outputs out(shape, 1);
        cache.decode(layer, text.tokens(t, 1), out.rows(0, 1));
      }
    std::vector<std::size_t> slots;
    for (std::uint32_t layer = 0; layer < 3; ++layer)
      for (std::uint32_t head = 0; head < 2; ++head) {
        slots.push_back(cache.positions({layer, head}).size());
        CHECK(cache.positions({layer, head}).back() == 109);
      }
    return slots;
  };
  CHECK(slots_after(UnevenInLayer{}) == std::vector<std::size_t>{10, 13, 10, 13, 10, 13});
  CHECK(slots_after(UnevenInCache{}) == std::vector<std::size_t>{10, 13, 16, 19, 22, 25});
  CHECK(slots_after(UnevenInCache{} | KIVI{.group = 8, .residual = 8}) ==
        std::vector<std::size_t>{10, 13, 16, 19, 22, 25});
}

namespace {
struct Counter {
  struct Slot {
    char small = 0;
  };
  void observe(Head<Counter>&, const Observation&) const {}
};
}  // namespace
/// For type_name_test.cpp, which has a policy of the same name.
kvc::TypeName type_of_another_counter();
kvc::TypeName type_of_another_counter() {
  return kvc::type_of<Counter>();
}
