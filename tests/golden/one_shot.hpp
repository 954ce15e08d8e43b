#pragma once
#include <kvc/policy/scoring.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "golden/feeder.hpp"
#include "golden/runner.hpp"

namespace golden {

/// How the scores of a group become one: the parameter `gqa_score_agg`.
inline kvc::Reduce reduce_of(const Case& golden, kvc::Reduce usual) {
  const std::string word = golden.word("gqa_score_agg", "");
  if (word == "max") return kvc::Reduce::max;
  if (word == "sum") return kvc::Reduce::sum;
  return word == "mean" ? kvc::Reduce::mean : usual;
}

/// Policies that choose once, at the end of a prompt, by a score of every token before a window that always stays
/// (SnapKV, KVCache-Factory's H2O). Tensors: q, k, v of the prompt and, with _dec, of what is generated; kept_idx
/// [cache head, slot]; out_dec [query head, generated token, dim]; maybe the scores [cache head, token].
struct OneShot {
  const Case& golden;
  Check& check;
  Feeder feeder, generated;
  std::size_t window = 0;
  std::string scores_tensor;

  /// `repeats`: the reference code copies keys and values to all query heads, which then choose one by one.
  OneShot(const Case& one, Check& its_check, bool repeats, std::size_t its_window, std::string its_scores)
      : golden(one),
        check(its_check),
        feeder(one, {}, repeats),
        generated(one, {"q_dec", "k_dec", "v_dec"}, repeats),
        window(its_window),
        scores_tensor(std::move(its_scores)) {}

  /// After the prompt: compares what `cache` kept and what it answers. `scores` are the policy's own, [cache head,
  /// token before the window]; empty if it had nothing to choose.
  void compare(kvc::CacheCore& cache, std::span<const float> scores) {
    const std::size_t heads = feeder.shape().kv_heads, group = feeder.shape().group(), width = feeder.width();
    if (golden.has(scores_tensor)) check.values(scores_tensor, scores);
    std::vector<std::uint8_t> agrees;
    for (std::size_t h = 0; h < heads; ++h) {
      agrees.push_back(compare_kept(cache, h, scores));
      const HeadRows rows = feeder.stored(cache, h);
      const auto is_nan = [](float x) { return std::isnan(x); };
      if (std::any_of(rows.keys.begin(), rows.keys.end(), is_nan) ||
          std::any_of(rows.values.begin(), rows.values.end(), is_nan))
        check.fail("the cache holds other rows than it was fed");
    }

    const std::size_t tokens = generated.tokens(), dim = width / feeder.shape().query_heads;
    std::vector<float> out;
    for (std::size_t token = 0; token < tokens; ++token) {
      const std::vector<float> one = generated.step(cache, token);
      out.insert(out.end(), one.begin(), one.end());
    }
    out = by_head(out, feeder.shape().query_heads, dim);
    for (std::size_t q = 0; q < feeder.shape().query_heads; ++q) {
      const std::size_t first = q * tokens * dim, count = tokens * dim;
      if (agrees[q / group])
        check.values("out_dec", std::span<const float>(out).subspan(first, count), first);
      else
        check.not_compared("out_dec", first, count, "the head chose other tokens of equal score");
    }
  }

 private:
  /// Whether the head keeps the expected slots. Where ties make several choices right, their scores must agree.
  bool compare_kept(const kvc::CacheCore& cache, std::size_t head, std::span<const float> scores) {
    const std::size_t slots = golden.shape("kept_idx", 2)[1], first = head * slots;
    const std::vector<kvc::Position> kept = cache.positions(head_id(head));
    const std::vector<kvc::Position> expected = golden.indices("kept_idx", first, slots);
    if (!golden.tie_ambiguous() || kept == expected || scores.empty()) {
      check.index_set("kept_idx", kept, first, slots);
      return true;
    }
    const std::size_t voted = scores.size() / feeder.shape().kv_heads;
    const auto chosen_scores = [&](const std::vector<kvc::Position>& positions) {
      std::vector<float> chosen;
      for (const kvc::Position position : positions)
        chosen.push_back(static_cast<std::size_t>(position) < voted
                             ? scores[head * voted + static_cast<std::size_t>(position)]
                             : static_cast<float>(feeder.tokens() + static_cast<std::size_t>(position)));  // the window
      return chosen;
    };
    const double tolerance = golden.has(scores_tensor) ? golden.tensor(scores_tensor).tolerance.value_or(2e-5) : 2e-5;
    check.multiset("kept_idx", first, slots, chosen_scores(kept), chosen_scores(expected), {tolerance});
    return false;
  }
};

}  // namespace golden
