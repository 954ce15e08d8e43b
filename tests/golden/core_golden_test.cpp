// The policies against the results of their authors' code, through the public interface of the cache.
#include <kvc/policy/h2o.hpp>
#include <kvc/policy/kivi.hpp>
#include <kvc/policy/snapkv.hpp>
#include <kvc/policy/streaming_llm.hpp>
#include <kvc/storage/row_store.hpp>

#include "catch_shim.hpp"
#include "golden/core_case.hpp"

using golden::Compared;
using golden::CoreCase;
using golden::Feeder;
using golden::largest_difference;
using kvc::HeadId;
using kvc::Position;

namespace {

HeadId head_id(std::size_t head) {
  return {0, static_cast<std::uint32_t>(head)};
}

/// Accumulated attention of a head's slots.
std::vector<float> masses(const kvc::CacheCore& cache, std::size_t head) {
  std::vector<float> result;
  for (const kvc::H2O::Slot& slot : cache.slots<kvc::H2O>(head_id(head))) result.push_back(slot.mass);
  return result;
}

/// Kept positions of a table [steps, heads, slots] that is padded with -1.
std::vector<Position> kept_of(const std::vector<std::int32_t>& table, std::size_t row, std::size_t slots) {
  std::vector<Position> kept;
  for (std::size_t i = 0; i < slots; ++i)
    if (table[row * slots + i] >= 0) kept.push_back(table[row * slots + i]);
  std::sort(kept.begin(), kept.end());
  return kept;
}

/// One token's outputs [heads * dim] out of a tensor [heads, tokens, dim].
std::vector<float> token_of(const std::vector<float>& by_token, std::size_t token, std::size_t width) {
  const auto begin = by_token.begin() + static_cast<std::ptrdiff_t>(token * width);
  return {begin, begin + static_cast<std::ptrdiff_t>(width)};
}

/// The cache holds exactly the rows that were fed at the positions it kept.
void require_rows_as_fed(const kvc::CacheCore& cache, const Feeder& feeder, Compared& compared) {
  for (std::size_t h = 0; h < feeder.shape().kv_heads; ++h) {
    const std::vector<Position> positions = cache.positions(head_id(h));
    const std::size_t dim = feeder.shape().head_dim;
    std::vector<float> keys(positions.size() * dim), values(keys.size());
    cache.gather(head_id(h), {keys.data(), positions.size(), dim}, {values.data(), positions.size(), dim});
    for (std::size_t i = 0; i < positions.size(); ++i, ++compared.rows) {
      const auto token = static_cast<std::size_t>(positions[i]);
      REQUIRE(std::equal(keys.begin() + std::ptrdiff_t(i * dim), keys.begin() + std::ptrdiff_t((i + 1) * dim),
                         feeder.key(token, h).begin()));
      REQUIRE(std::equal(values.begin() + std::ptrdiff_t(i * dim), values.begin() + std::ptrdiff_t((i + 1) * dim),
                         feeder.value(token, h).begin()));
    }
  }
}

}  // namespace

TEST_CASE("H2O keeps, scores and attends as the authors' real dropping does") {
  const std::string name =
      GENERATE(as<std::string>(), "h2o_rd_small", "h2o_rd_mid", "h2o_rd_grow_into_budget", "h2o_rd_rolling_rope");
  const CoreCase golden(name);
  const bool rolling = name == "h2o_rd_rolling_rope";
  const std::size_t heads = golden.parameter("heads"), dim = golden.parameter("head_dim"),
                    prompt = golden.parameter("prefill"), steps = golden.parameter("decode"),
                    heavy = golden.parameter("heavy"), recent = golden.parameter("recent");
  Feeder feeder({.query_heads = heads, .kv_heads = heads, .head_dim = dim}, golden.by_token("q"), golden.by_token("k"),
                golden.by_token("v"));
  if (rolling) feeder.rotate();
  const auto expected_prompt = golden.by_token("out_prefill"), expected_steps = golden.floats("out_decode"),
             expected_scores = golden.floats("scores");
  const auto kept = golden.integers("kept_idx");
  const std::size_t slots = golden.shape("kept_idx")[2];

  golden::every_way(prompt, [&](kvc::Isa isa, std::size_t chunk) {
    INFO(name << ", " << to_string(isa) << ", prompt in parts of " << chunk);
    Compared compared;
    kvc::KVCache<kvc::H2O> cache(feeder.shape(),
                                 {.budget = heavy + recent,
                                  .recent = recent,
                                  .positions = rolling ? kvc::Positions::in_cache : kvc::Positions::original},
                                 golden::in_float());
    const auto check_kept = [&](std::size_t step) {
      for (std::size_t h = 0; h < heads; ++h) {
        const std::vector<Position> expected = kept_of(kept, step * heads + h, slots);
        REQUIRE(cache.positions(head_id(h)) == expected);
        const std::span<const float> scores(expected_scores.data() + (step * heads + h) * slots, expected.size());
        REQUIRE(largest_difference(masses(cache, h), scores) <= golden.tolerance("scores"));
        compared.kept += expected.size();
        compared.scores += scores.size();
      }
    };
    const std::vector<float> out = feeder.prompt(cache, 0, prompt, chunk);
    REQUIRE(largest_difference(out, expected_prompt) <= golden.tolerance("out_prefill"));
    compared.outputs += out.size();
    check_kept(0);
    for (std::size_t step = 0; step < steps; ++step) {
      const std::vector<float> got = feeder.step(cache, prompt + step);
      REQUIRE(largest_difference(got, token_of(expected_steps, step, heads * dim)) <= golden.tolerance("out_decode"));
      compared.outputs += got.size();
      check_kept(step + 1);
    }
    require_rows_as_fed(cache, feeder, compared);
    REQUIRE(compared.outputs == (prompt + steps) * heads * dim);
    REQUIRE(compared.kept > steps * heads);
    REQUIRE(compared.scores == compared.kept);
    REQUIRE(compared.rows == heads * (heavy + recent));
  });
}

TEST_CASE("H2O once after the prompt chooses as KVCache-Factory does") {
  const CoreCase golden("h2o_prefill_mha");
  const std::size_t heads = golden.parameter("kv_heads"), dim = golden.parameter("head_dim"),
                    prompt = golden.parameter("prefill"), capacity = golden.parameter("capacity");
  const kvc::CacheShape shape{.query_heads = heads, .kv_heads = heads, .head_dim = dim};
  const Feeder feeder(shape, golden.by_token("q"), golden.by_token("k"), golden.by_token("v"));
  const Feeder next(shape, golden.by_token("q_dec"), golden.by_token("k_dec"), golden.by_token("v_dec"));
  const auto kept = golden.integers("kept_idx");
  const auto expected = golden.by_token("out_dec");

  golden::every_way(prompt, [&](kvc::Isa isa, std::size_t chunk) {
    INFO(to_string(isa) << ", prompt in parts of " << chunk);
    kvc::KVCache cache(
        shape, kvc::H2O{.budget = capacity, .recent = golden.parameter("window"), .when = kvc::H2O::When::prompt_end},
        golden::in_float());
    feeder.prompt(cache, 0, prompt, chunk);
    for (std::size_t h = 0; h < heads; ++h) REQUIRE(cache.positions(head_id(h)) == kept_of(kept, h, capacity));
    const std::vector<float> out = next.step(cache, 0);
    REQUIRE(out.size() == heads * dim);
    REQUIRE(largest_difference(out, expected) <= golden.tolerance("out_dec"));
  });
}

TEST_CASE("SnapKV keeps and attends as the authors' code and KVCache-Factory do") {
  const std::string name = GENERATE(as<std::string>(), "snap_avg_mha", "snap_max_mha", "snap_short_prompt",
                                    "snap_n_eq_capacity", "snap_gqa2_official", "snap_gqa2_kvhead");
  const CoreCase golden(name);
  const std::size_t query_heads = golden.parameter("q_heads"), kv_heads = golden.parameter("kv_heads"),
                    dim = golden.parameter("head_dim"), prompt = golden.parameter("prefill");
  const bool repeats = golden.word("variant") == "official_query_head" && query_heads != kv_heads;
  // The authors repeat keys and values to the query heads; an engine gets their choice by doing the same.
  const auto keys_of = [&](const std::string& tensor) {
    const std::vector<float> in = golden.by_token(tensor);
    if (!repeats) return in;
    std::vector<float> out;
    for (std::size_t row = 0; row < in.size() / dim; ++row)
      for (std::size_t copy = 0; copy < query_heads / kv_heads; ++copy)
        out.insert(out.end(), in.begin() + std::ptrdiff_t(row * dim), in.begin() + std::ptrdiff_t((row + 1) * dim));
    return out;
  };
  const std::size_t heads = repeats ? query_heads : kv_heads;
  const kvc::CacheShape shape{.query_heads = query_heads, .kv_heads = heads, .head_dim = dim};
  const Feeder feeder(shape, golden.by_token("q"), keys_of("k"), keys_of("v"));
  const Feeder next(shape, golden.by_token("q_dec"), keys_of("k_dec"), keys_of("v_dec"));
  const auto kept = golden.integers("kept_idx");
  const std::size_t slots = golden.shape("kept_idx")[1];
  const auto expected = golden.by_token("out_dec");
  REQUIRE(golden.shape("kept_idx")[0] == heads);

  golden::every_way(prompt, [&](kvc::Isa isa, std::size_t chunk) {
    INFO(name << ", " << to_string(isa) << ", prompt in parts of " << chunk);
    Compared compared;
    const kvc::SnapKV policy{
        .budget = golden.parameter("max_capacity_prompt"),
        .window = golden.parameter("window_size"),
        .kernel = golden.parameter("kernel_size"),
        .pooling = golden.word("pooling") == "maxpool" ? kvc::Pooling::max : kvc::Pooling::average};
    kvc::KVCache cache(shape, policy, golden::in_float());
    feeder.prompt(cache, 0, prompt, chunk);
    for (std::size_t h = 0; h < heads; ++h) {
      REQUIRE(cache.positions(head_id(h)) == kept_of(kept, h, slots));
      compared.kept += slots;
    }
    require_rows_as_fed(cache, feeder, compared);
    const std::vector<float> out = next.step(cache, 0);
    REQUIRE(largest_difference(out, expected) <= golden.tolerance("out_dec"));
    REQUIRE(out.size() == query_heads * dim);
    REQUIRE(compared.rows == compared.kept);
    REQUIRE(compared.kept == heads * slots);
  });
}

TEST_CASE("StreamingLLM evicts and attends at cache positions as the authors' code does") {
  const std::string name =
      GENERATE(as<std::string>(), "sllm_stream_mha", "sllm_prefill_then_decode", "sllm_multiturn_evict_for_space");
  const CoreCase golden(name);
  const std::size_t query_heads = golden.parameter("q_heads"), kv_heads = golden.parameter("kv_heads"),
                    dim = golden.parameter("head_dim"), width = query_heads * dim;
  const bool for_space = golden.word("evict") == "space";
  const std::size_t sinks = golden.parameter("start_size"), recent = golden.parameter("recent_size");
  Feeder feeder({.query_heads = query_heads, .kv_heads = kv_heads, .head_dim = dim}, golden.by_token("q"),
                golden.by_token("k"), golden.by_token("v"));
  feeder.rotate();
  const auto expected = golden.floats("out");
  const auto kept = golden.integers("kept_idx");
  const std::size_t slots = golden.shape("kept_idx")[1];
  const auto turns = golden.params()["chunks"].numbers<std::size_t>();
  const std::size_t longest = *std::max_element(turns.begin(), turns.end());

  golden::every_way(longest, [&](kvc::Isa isa, std::size_t chunk) {
    INFO(name << ", " << to_string(isa) << ", prompts in parts of " << chunk);
    Compared compared;
    const kvc::StreamingLLM policy{
        .budget = sinks + recent,
        .sinks = sinks,
        .positions = kvc::Positions::in_cache,
        .when = for_space ? kvc::StreamingLLM::When::make_room : kvc::StreamingLLM::When::every_pass};
    kvc::KVCache cache(feeder.shape(), policy, golden::in_float());
    std::size_t token = 0;
    for (std::size_t turn = 0; turn < turns.size(); ++turn) {
      if (for_space && !golden.params()["space"][turn].is_null())
        cache.make_room(static_cast<std::size_t>(golden.params()["space"][turn].number()));
      const std::vector<float> out =
          turns[turn] == 1 ? feeder.step(cache, token) : feeder.prompt(cache, token, turns[turn], chunk);
      const std::span<const float> expected_out(expected.data() + token * width, turns[turn] * width);
      REQUIRE(largest_difference(out, expected_out) <= golden.tolerance("out"));
      compared.outputs += out.size();
      token += turns[turn];
      for (std::size_t h = 0; h < kv_heads; ++h) {
        const std::vector<Position> positions = kept_of(kept, turn, slots);
        REQUIRE(cache.positions(head_id(h)) == positions);
        compared.kept += positions.size();
      }
    }
    require_rows_as_fed(cache, feeder, compared);
    REQUIRE(compared.outputs == expected.size());
    REQUIRE(compared.kept > turns.size());
    REQUIRE(compared.rows > 0);
  });
}

TEST_CASE("KIVI seals, decodes and attends as the authors' code does") {
  const std::string name = GENERATE(as<std::string>(), "kivi_cache_2b_R32", "kivi_cache_4b_R64", "kivi_cache_short");
  const CoreCase golden(name);
  const std::size_t heads = golden.parameter("kv_heads"), dim = golden.parameter("head_dim"),
                    prompt = golden.parameter("prefill"), steps = golden.parameter("decode"), width = heads * dim;
  const Feeder feeder({.query_heads = golden.parameter("q_heads"), .kv_heads = heads, .head_dim = dim},
                      golden.by_token("q"), golden.by_token("k"), golden.by_token("v"));
  const kvc::KIVI policy{.key_bits = static_cast<unsigned>(golden.parameter("k_bits")),
                         .value_bits = static_cast<unsigned>(golden.parameter("v_bits")),
                         .group = golden.parameter("group"),
                         .residual = golden.parameter("residual"),
                         .metadata = kvc::Scalar::f32};
  const auto expected_prompt = golden.floats("out_prefill"), expected_steps = golden.floats("out_decode"),
             expected_keys = golden.floats("k_dequant"), expected_values = golden.floats("v_dequant");
  const auto lengths = golden.integers("state_lens");
  const std::size_t sealed_keys = golden.shape("k_dequant")[2], sealed_values = golden.shape("v_dequant")[1];

  golden::every_way(prompt, [&](kvc::Isa isa, std::size_t chunk) {
    INFO(name << ", " << to_string(isa) << ", prompt in parts of " << chunk);
    Compared compared;
    kvc::KVCache cache(feeder.shape(), policy, golden::in_float());
    const auto check_lengths = [&](std::size_t step) {
      for (std::size_t h = 0; h < heads; ++h) {
        const kvc::RowStore &keys = cache.key_rows(head_id(h)), &values = cache.value_rows(head_id(h));
        const std::vector<std::size_t> got{keys.sealed_rows(), keys.rows() - keys.sealed_rows(), values.sealed_rows(),
                                           values.rows() - values.sealed_rows()};
        REQUIRE(std::equal(got.begin(), got.end(), lengths.begin() + std::ptrdiff_t(step * 4),
                           [](std::size_t a, std::int32_t b) { return a == static_cast<std::size_t>(b); }));
        compared.lengths += got.size();
      }
    };
    const std::vector<float> out = feeder.prompt(cache, 0, prompt, chunk);
    REQUIRE(largest_difference(out, expected_prompt) <= golden.tolerance("out_prefill"));
    compared.outputs += out.size();
    check_lengths(0);
    for (std::size_t step = 0; step < steps; ++step) {
      const std::vector<float> got = feeder.step(cache, prompt + step);
      REQUIRE(largest_difference(got, token_of(expected_steps, step, width)) <= golden.tolerance("out_decode"));
      compared.outputs += got.size();
      check_lengths(step + 1);
    }

    const std::size_t tokens = prompt + steps;
    for (std::size_t h = 0; h < heads; ++h) {
      std::vector<float> keys(tokens * dim), values(keys.size());
      cache.gather(head_id(h), {keys.data(), tokens, dim}, {values.data(), tokens, dim});
      for (std::size_t t = 0; t < tokens; ++t) {
        const std::span<const float> key(keys.data() + t * dim, dim), value(values.data() + t * dim, dim);
        std::vector<float> expected_key(feeder.key(t, h).begin(), feeder.key(t, h).end());
        std::vector<float> expected_value(feeder.value(t, h).begin(), feeder.value(t, h).end());
        for (std::size_t c = 0; c < dim && t < sealed_keys; ++c)
          expected_key[c] = expected_keys[(h * dim + c) * sealed_keys + t];
        for (std::size_t c = 0; c < dim && t < sealed_values; ++c)
          expected_value[c] = expected_values[(h * sealed_values + t) * dim + c];
        REQUIRE(largest_difference(key, expected_key) <= (t < sealed_keys ? golden.tolerance("k_dequant") : 0.0f));
        REQUIRE(largest_difference(value, expected_value) <=
                (t < sealed_values ? golden.tolerance("v_dequant") : 0.0f));
        ++compared.rows;
      }
    }
    REQUIRE(compared.outputs == (prompt + steps) * width);
    REQUIRE(compared.lengths == (steps + 1) * heads * 4);
    REQUIRE(compared.rows == heads * tokens);
  });
}

namespace {

/// Seals keys, or values, at once, so that all of a quantizer's groups can be seen.
struct SealsAtOnce {
  kvc::GroupQuant format;
  bool keys = true;
  std::size_t batch = 1;
  kvc::Streams quantize(kvc::HeadId) const {
    kvc::Streams streams;
    (keys ? streams.key : streams.value) = {.format = format, .batch = batch};
    return streams;
  }
};

}  // namespace

TEST_CASE("KIVI's quantizer decodes to what the authors' quantizer decodes to") {
  const std::string name = GENERATE(as<std::string>(), "kivi_k2_g32", "kivi_k4_g32", "kivi_v2_g32", "kivi_v4_g32");
  const CoreCase golden(name);
  const bool keys = golden.word("tensor") == "K";
  const std::size_t heads = golden.parameter("heads"), tokens = golden.parameter("tokens"),
                    dim = golden.parameter("head_dim"), group = golden.parameter("group");
  const Feeder feeder({.query_heads = heads, .kv_heads = heads, .head_dim = dim}, golden.by_token("x"),
                      golden.by_token("x"), golden.by_token("x"));
  const SealsAtOnce policy{{.bits = static_cast<unsigned>(golden.parameter("bits")),
                            .axis = keys ? kvc::Axis::channel : kvc::Axis::token,
                            .group = group,
                            .metadata = kvc::Scalar::f32},
                           keys,
                           keys ? group : 1};
  const auto expected = golden.by_token("dequant");

  golden::every_way(tokens, [&](kvc::Isa isa, std::size_t chunk) {
    INFO(name << ", " << to_string(isa) << ", prompt in parts of " << chunk);
    std::size_t compared = 0;
    kvc::KVCache cache(feeder.shape(), policy, golden::in_float());
    feeder.prompt(cache, 0, tokens, chunk);
    for (std::size_t h = 0; h < heads; ++h) {
      REQUIRE((keys ? cache.key_rows(head_id(h)) : cache.value_rows(head_id(h))).sealed_rows() == tokens);
      std::vector<float> got_keys(tokens * dim), got_values(tokens * dim);
      cache.gather(head_id(h), {got_keys.data(), tokens, dim}, {got_values.data(), tokens, dim});
      for (std::size_t t = 0; t < tokens; ++t) {
        const std::span<const float> got((keys ? got_keys : got_values).data() + t * dim, dim);
        const std::span<const float> wanted(expected.data() + (t * heads + h) * dim, dim);
        REQUIRE(largest_difference(got, wanted) <= golden.tolerance("dequant"));
        compared += dim;
      }
    }
    REQUIRE(compared == heads * tokens * dim);
  });
}
