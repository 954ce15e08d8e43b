#include <kvc/policies/h2o.hpp>

#include <algorithm>

#include "evaluation/h2o_mask.hpp"
#include "golden/feeder.hpp"
#include "golden/one_shot.hpp"
#include "golden/runner.hpp"

namespace golden {
namespace {

/// A maximum over the group is taken of each pass's sums: only a whole prompt has the reference's.
template <class Run>
void prompt_ways(Check& check, std::size_t prompt, kvc::Reduce reduce, Run run) {
  if (reduce == kvc::Reduce::max)
    every_isa(check, [&] { run(prompt); });
  else
    every_way(check, prompt, run);
}

/// Accumulated attention of a head's slots.
std::vector<float> masses(const kvc::CacheCore& cache, std::size_t head) {
  std::vector<float> result;
  for (const kvc::H2O::Slot& slot : cache.slots<kvc::H2O>(head_id(head))) result.push_back(slot.mass);
  return result;
}

// --- Real dropping: eviction after every pass, with or without rolling positions.

bool runs_real_drop(const Case& golden) {
  return golden.has("kept_idx") && golden.has("out_decode") && golden.has_parameter("prefill") &&
         golden.has_parameter("heavy") && golden.has_parameter("recent");
}

/// One run of a real-drop case. Heads whose choice was another among equal scores are not compared any further.
struct RealDrop {
  const Case& golden;
  Check& check;
  const Feeder& feeder;
  kvc::CacheCore& cache;
  std::size_t steps, slots;  // of kept_idx [step, head, slot]
  std::vector<std::uint8_t> strayed = std::vector<std::uint8_t>(feeder.shape().kv_heads);

  static constexpr const char* Strayed = "the head chose other tokens of equal score";

  void compare_state(std::size_t step) {
    const std::size_t heads = feeder.shape().kv_heads;
    for (std::size_t h = 0; h < heads; ++h) {
      const std::vector<kvc::Position> positions = cache.positions(head_id(h));
      if (golden.has("kept_len"))
        check.integers("kept_len", std::vector{static_cast<std::int32_t>(positions.size())}, step);
      compare_head(positions, h, (step * heads + h) * slots);
    }
  }

  void compare_head(const std::vector<kvc::Position>& positions, std::size_t head, std::size_t first) {
    if (strayed[head]) {
      check.not_compared("kept_idx", first, slots, Strayed);
      if (golden.has("scores")) check.not_compared("scores", first, slots, Strayed);
      return;
    }
    std::vector<float> scores = masses(cache, head);
    scores.resize(std::max(slots, scores.size()));  // the table is padded with 0
    if (golden.tie_ambiguous() && golden.has("scores") && positions != golden.indices("kept_idx", first, slots)) {
      const std::vector<float>& all = golden.floats("scores");
      const std::vector<float> expected(all.begin() + std::ptrdiff_t(first),
                                        all.begin() + std::ptrdiff_t(first + slots));
      check.multiset("scores", first, slots, scores, expected, {golden.tensor("scores").tolerance.value_or(5e-5)});
      check.not_compared("kept_idx", first, slots, Strayed);
      strayed[head] = 1;
      return;
    }
    check.index_set("kept_idx", positions, first, slots);
    if (golden.has("scores")) check.values("scores", scores, first);
  }

  /// out_decode is [step, query head, dim].
  void compare_output(std::span<const float> out, std::size_t step) {
    const std::size_t dim = feeder.shape().values_dim();
    for (std::size_t q = 0; q < feeder.shape().query_heads; ++q) {
      const std::size_t first = step * feeder.width() + q * dim;
      if (strayed[q / feeder.shape().group()])
        check.not_compared("out_decode", first, dim, Strayed);
      else
        check.values("out_decode", out.subspan(q * dim, dim), first);
    }
  }

  void compare_stored() {
    for (std::size_t h = 0, keys = 0, values = 0; h < feeder.shape().kv_heads; ++h) {
      const HeadRows rows = feeder.stored(cache, h);
      if (golden.has("k_cache_final")) compare_rows("k_cache_final", rows.keys, keys, strayed[h]);
      if (golden.has("v_cache_final")) compare_rows("v_cache_final", rows.values, values, strayed[h]);
      keys += rows.keys.size();
      values += rows.values.size();
    }
  }
  void compare_rows(const std::string& tensor, const std::vector<float>& rows, std::size_t first, bool skip) {
    if (skip)
      check.not_compared(tensor, first, rows.size(), Strayed);
    else
      check.values(tensor, rows, first);
  }
};

void run_real_drop(const Case& golden, Check& check) {
  const std::vector<std::size_t> kept = golden.shape("kept_idx", 3);
  const bool rolling = golden.variant().find("streaming") != std::string::npos;
  Feeder feeder(golden, {}, kept[1] != golden.shape("k", 3)[0]);
  if (rolling) feeder.rotate(golden.number("rope_theta", 10000));
  const std::size_t prompt = golden.count("prefill"), recent = golden.count("recent");
  const kvc::H2O policy{.budget = golden.count("heavy") + recent,
                        .recent = recent,
                        .reduce = reduce_of(golden, kvc::Reduce::sum),
                        .positions = rolling ? kvc::Positions::in_cache : kvc::Positions::original};

  prompt_ways(check, prompt, policy.reduce, [&](std::size_t chunk) {
    kvc::KVCache cache(feeder.shape(), policy, in_float());
    RealDrop run{golden, check, feeder, cache, kept[0], kept[2]};
    const std::vector<float> out = feeder.prompt(cache, 0, prompt, chunk);
    if (golden.has("out_prefill"))
      check.values("out_prefill", by_head(out, feeder.shape().query_heads, feeder.shape().values_dim()));
    run.compare_state(0);
    for (std::size_t token = prompt; token < feeder.tokens(); ++token) {
      run.compare_output(feeder.step(cache, token), token - prompt);
      run.compare_state(token - prompt + 1);
    }
    run.compare_stored();
  });
}

// --- The authors' accuracy simulation: nothing is dropped, what the next query sees is masked.

bool runs_mask(const Case& golden) {
  return golden.has("next_mask") && golden.has("out_decode") && golden.has_parameter("prefill") &&
         golden.has_parameter("heavy_ratio") && golden.has_parameter("recent_ratio");
}

/// What the next query sees, the padding (-1) included: next_mask is [step, head, position].
void compare_mask(const Case& golden, Check& check, const kvc::CacheCore& cache, std::size_t step) {
  const std::vector<std::size_t> shape = golden.shape("next_mask", 3);
  for (std::size_t h = 0; h < shape[1]; ++h) {
    std::vector<std::int32_t> mask;
    for (const evaluation::H2OMask::Slot& slot : cache.slots<evaluation::H2OMask>(head_id(h)))
      mask.push_back(slot.visible);
    mask.push_back(cache.state<evaluation::H2OMask>(head_id(h)).sees_itself);
    mask.resize(std::max(mask.size(), shape[2]), -1);
    check.integers("next_mask", mask, (step * shape[1] + h) * shape[2]);
  }
}

void run_mask(const Case& golden, Check& check) {
  const Feeder feeder(golden, {}, golden.shape("next_mask", 3)[1] != golden.shape("k", 3)[0]);
  const std::size_t prompt = golden.count("prefill");
  const evaluation::H2OMask policy{golden.number("heavy_ratio", 0), golden.number("recent_ratio", 0)};
  every_way(check, prompt, [&](std::size_t chunk) {
    kvc::KVCache cache(feeder.shape(), policy, in_float());
    const std::vector<float> out = feeder.prompt(cache, 0, prompt, chunk);
    if (golden.has("out_prefill"))
      check.values("out_prefill", by_head(out, feeder.shape().query_heads, feeder.shape().values_dim()));
    compare_mask(golden, check, cache, 0);
    for (std::size_t token = prompt; token < feeder.tokens(); ++token) {
      check.values("out_decode", feeder.step(cache, token), (token - prompt) * feeder.width());
      compare_mask(golden, check, cache, token - prompt + 1);
    }
  });
}

// --- KVCache-Factory's H2O: once, at the end of the prompt.

bool runs_one_shot(const Case& golden) {
  return golden.has("q_dec") && golden.has("kept_idx") && golden.has_parameter("capacity") &&
         golden.has_parameter("window");
}

/// The masses of all tokens before the window: those of a cache that keeps everything.
std::vector<float> scores_of(const OneShot& shot, kvc::H2O policy, std::size_t chunk) {
  const std::size_t prompt = shot.feeder.tokens();
  policy.budget = prompt + 1;
  kvc::KVCache cache(shot.feeder.shape(), policy, in_float());
  shot.feeder.prompt(cache, 0, prompt, chunk);
  std::vector<float> scores;
  for (std::size_t h = 0; h < shot.feeder.shape().kv_heads; ++h) {
    const std::vector<float> all = masses(cache, h);
    scores.insert(scores.end(), all.begin(), all.end() - std::ptrdiff_t(std::min(prompt, shot.window)));
  }
  return scores;
}

void run_one_shot(const Case& golden, Check& check) {
  const std::size_t cache_heads = golden.shape("kept_idx", 2)[0];
  OneShot shot(golden, check, cache_heads != golden.shape("k", 3)[0], golden.count("window"), "scores");
  const kvc::H2O policy{.budget = golden.count("capacity"),
                        .recent = shot.window,
                        .reduce = reduce_of(golden, kvc::Reduce::mean),
                        .when = kvc::When::prompt_end};
  const std::size_t prompt = shot.feeder.tokens();
  prompt_ways(check, prompt, policy.reduce, [&](std::size_t chunk) {
    kvc::KVCache cache(shot.feeder.shape(), policy, in_float());
    shot.feeder.prompt(cache, 0, prompt, chunk);
    shot.compare(cache, scores_of(shot, policy, chunk));
  });
}

bool accepts(const Case& golden) {
  return golden.policy() == "h2o" && (runs_real_drop(golden) || runs_mask(golden) || runs_one_shot(golden));
}
void run(const Case& golden, Check& check) {
  if (runs_one_shot(golden)) return run_one_shot(golden, check);
  return runs_mask(golden) ? run_mask(golden, check) : run_real_drop(golden, check);
}

}  // namespace

extern const Runner H2ORunner;
const Runner H2ORunner{accepts, run};

}  // namespace golden
