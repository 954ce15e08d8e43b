#include <kvc/policies/streaming_llm.hpp>

#include <algorithm>

#include "golden/feeder.hpp"
#include "golden/runner.hpp"

namespace golden {
namespace {

/// "after": evict after every pass; "space": only before a turn, when tokens are announced.
bool accepts(const Case& golden) {
  const std::string evict = golden.word("evict", "after");
  return golden.policy() == "streamingllm" && golden.has_parameter("start_size") && golden.has_parameter("chunks") &&
         (evict == "after" || evict == "space");
}

/// The tokens announced before a turn; 0: none.
std::size_t announced(const Case& golden, std::size_t turn) {
  if (!golden.has_parameter("space")) return 0;
  const evaluation::Json& space = golden.parameter("space").at(turn);
  return space.is_null() ? 0 : static_cast<std::size_t>(space.get<double>());
}

/// Compares what stays after a turn, the same in every head.
void check_kept(const Case& golden, Check& check, const kvc::CacheCore& cache, std::size_t turn) {
  for (std::size_t h = 0; h < cache.shape().kv_heads; ++h) {
    const std::vector<kvc::Position> positions = cache.positions(head_id(h));
    if (golden.has("kept_idx")) {
      const std::size_t slots = golden.shape("kept_idx", 2)[1];
      check.index_set("kept_idx", positions, turn * slots, slots);
    }
    if (golden.has("kept_len"))
      check.integers("kept_len", std::vector{static_cast<std::int32_t>(positions.size())}, turn);
  }
}

/// Compares the cache position of each query of a turn: the slots before it and its place in the turn.
void check_query_positions(const Case& golden, Check& check, const kvc::CacheCore& cache, std::size_t token,
                           std::size_t count) {
  if (!golden.has("query_pos")) return;
  std::vector<std::int32_t> positions;
  for (std::size_t i = 0; i < count; ++i)
    positions.push_back(static_cast<std::int32_t>(cache.positions(head_id(0)).size() + i));
  check.integers("query_pos", positions, token);
}

void check_stored(const Case& golden, Check& check, const kvc::CacheCore& cache, const Feeder& feeder) {
  for (std::size_t h = 0, keys = 0, values = 0; h < feeder.shape().kv_heads; ++h) {
    const HeadRows stored = feeder.stored(cache, h);
    if (golden.has("k_cache_final")) check.values("k_cache_final", stored.keys, keys);
    if (golden.has("v_cache_final")) check.values("v_cache_final", stored.values, values);
    keys += stored.keys.size();
    values += stored.values.size();
  }
}

void run(const Case& golden, Check& check) {
  Feeder feeder(golden, {});
  feeder.rotate(golden.number("rope_theta", 10000));
  const auto turns = golden.parameter("chunks").get<std::vector<std::size_t>>();
  const std::size_t sinks = golden.count("start_size");
  const bool for_space = golden.word("evict", "after") == "space";
  const kvc::StreamingLLM policy{.budget = sinks + golden.count("recent_size"),
                                 .sinks = sinks,
                                 .positions = kvc::Positions::in_cache,
                                 .when = for_space ? kvc::When::make_room : kvc::When::every_pass};

  every_way(check, *std::max_element(turns.begin(), turns.end()), [&](std::size_t chunk) {
    kvc::KVCache cache(feeder.shape(), policy, in_float());
    std::size_t token = 0;
    for (std::size_t turn = 0; turn < turns.size(); ++turn) {
      if (for_space && announced(golden, turn) != 0) cache.make_room(announced(golden, turn));
      check_query_positions(golden, check, cache, token, turns[turn]);
      const std::vector<float> out =
          turns[turn] == 1 ? feeder.step(cache, token) : feeder.prompt(cache, token, turns[turn], chunk);
      check.values("out", out, token * feeder.width());
      token += turns[turn];
      check_kept(golden, check, cache, turn);
    }
    check_stored(golden, check, cache, feeder);
  });
}

}  // namespace

extern const Runner StreamingLLMRunner;
const Runner StreamingLLMRunner{accepts, run};

}  // namespace golden
