#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// LagKV (Liang et al., "LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important", arXiv 2504.04704):
/// once, after the prompt, of every `lag` tokens those whose keys and values vary most over their channels, measured in the
/// range that each channel has in the `lag` tokens after them; no attention and no queries are needed. Authors' code:
/// AI-Lab-China-Merchants-Bank/LagKV; this is kvpress's LagKVPress. The first `sinks` tokens are Protected; the last whole
/// partition and what follows it have nothing to be measured by and stay, and where the budget cannot hold even those, the
/// newest stay (kvpress scores them equally and leaves the choice to a sort). A prompt below sinks + 2 lag tokens keeps its
/// newest ones. A channel that is constant in the partition after counts as 0.
struct LagKV {
  Budget budget = 1024;
  std::size_t sinks = 4, lag = 128;
  /// Under policies that share budgets out by scores: `AdaKV{.base = LagKV{.cross_scoring = true}}`.
  bool cross_scoring = false;

  static constexpr PolicyName name{"lagkv", "Keeps the tokens that vary most, seen from the tokens after them."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &LagKV::budget, "Slots that a head keeps when a prompt ends."),
        parameter("sinks", &LagKV::sinks, "So many first tokens always stay."),
        parameter("lag", &LagKV::lag, "So many neighbouring tokens are measured by as many after them."),
        parameter("cross_scoring", &LagKV::cross_scoring,
                  "Whether all tokens are compared by their scores, instead of by their ranks among lag tokens."));
  }

  void score(const Head<LagKV>& head, std::span<float> scores) const {
    const std::span<float> others = protect_first(scores, sinks);
    const std::size_t partitions = others.size() / lag, scored = partitions < 2 ? 0 : (partitions - 1) * lag;
    for (std::size_t i = scored; i < others.size(); ++i)  // above every score, the newest highest
      others[i] = 2 + static_cast<float>(double(i) / double(others.size()));
    std::ranges::fill(others.first(scored), 0.0f);
    if (scored == 0) return;
    const ConstRows keys = head.keys(), values = head.values();
    for (std::size_t begin = 0; begin < scored; begin += lag) {
      const std::span<float> part = others.subspan(begin, lag);
      for (const ConstRows& rows : {keys, values})
        add_shares(rows.subrows(sinks + begin, lag), rows.subrows(sinks + begin + lag, lag), part);
      if (!cross_scoring) rank(part);
    }
  }

  /// Throws Error if partitions are too small to vary, or if a head may hold nothing beside the sinks.
  void validate(const CacheShape& shape) const {
    require_between("LagKV: sinks", sinks, 0);
    require_between("LagKV: lag", lag, 2);
    budget.require(sinks + 1, "LagKV: sinks + 1", shape);
  }

 private:
  /// Adds half the softmax, over `rows`, of the deviation of each row's channels in the range that they have in `after`.
  static void add_shares(ConstRows rows, ConstRows after, std::span<float> scores) {
    std::vector<float> least(after[0].begin(), after[0].end()), most = least;
    for (std::size_t r = 1; r < after.count; ++r)
      for (std::size_t c = 0; c < after.dim; ++c) {
        least[c] = std::min(least[c], after[r][c]);
        most[c] = std::max(most[c], after[r][c]);
      }
    std::vector<double> shares(rows.count);
    for (std::size_t r = 0; r < rows.count; ++r) {
      double sum = 0, squares = 0;
      for (std::size_t c = 0; c < rows.dim; ++c) {
        const double range = double(most[c]) - double(least[c]);
        const double x = range > 0 ? (double(rows[r][c]) - double(least[c])) / range : 0;
        sum += x;
        squares += x * x;
      }
      const auto channels = double(rows.dim);
      shares[r] = std::sqrt(std::max(0.0, squares - sum * sum / channels) / std::max(1.0, channels - 1));
    }
    softmax(shares);
    for (std::size_t r = 0; r < rows.count; ++r) scores[r] += static_cast<float>(shares[r] / 2);
  }
  /// Scores become ranks: the share of them that is lower.
  static void rank(std::span<float> scores) {
    std::vector<float> ascending(scores.begin(), scores.end());
    std::sort(ascending.begin(), ascending.end());
    for (float& score : scores) {
      const auto lower = std::lower_bound(ascending.begin(), ascending.end(), score) - ascending.begin();
      score = static_cast<float>(double(lower) / double(ascending.size()));
    }
  }
};

}  // namespace kvc::inline KVC_ABI
