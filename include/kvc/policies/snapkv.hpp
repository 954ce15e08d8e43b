#pragma once
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// SnapKV (Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv 2404.14469): once, after
/// the prompt, the tokens that its last `window` queries attend to, and the window itself; generated tokens all stay.
/// Authors' code: FasterDecoding/SnapKV, snapkv/monkeypatch/snapkv_utils.py (`SnapKVCluster.update_kv`), whose class
/// defaults are ours; its LongBench runs use window 32, budget 1024 to 4096, kernel 7 and max pooling. Differs by
/// default: the votes of the query heads that share a KV head are averaged, so the cache stays as small as GQA makes
/// it. The authors repeat keys and values to all query heads first and let each choose: feed the cache such rows
/// (kv_heads = query_heads) and the choice is theirs. kvpress reduces after pooling: `.order = Order::after_pooling`.
struct SnapKV {
  /// Where the group is reduced: it matters for max pooling only.
  enum class Order : std::uint8_t { before_pooling, after_pooling };
  friend constexpr auto words_of(Order) {
    return words(word("before_pooling", Order::before_pooling), word("after_pooling", Order::after_pooling));
  }

  Budget budget = 320;
  std::size_t window = 64;
  std::size_t kernel = 5;
  Pooling pooling = Pooling::average;
  Reduce reduce = Reduce::mean;
  Order order = Order::before_pooling;

  static constexpr PolicyName name{"snapkv", "Keeps the tokens that the last queries of a prompt attend to."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &SnapKV::budget, "Slots that a head keeps when a prompt ends, the window included."),
        parameter("window", &SnapKV::window, "So many newest queries vote, and their tokens always stay."),
        parameter("kernel", &SnapKV::kernel, "Votes are pooled over so many neighbouring tokens, an odd number."),
        parameter("pooling", &SnapKV::pooling, "How the votes of neighbouring tokens become one."),
        parameter("reduce", &SnapKV::reduce, "How the votes of the query heads of a group become one."),
        parameter("order", &SnapKV::order, "Whether the group becomes one before its votes are pooled, or after."));
  }

  Needs needs() const { return {.query_window = window}; }

  /// Pooled votes of the tokens before the window; the window is Protected. Throws Error(missing_feed) if no query is
  /// kept: a prompt's end lets go of them.
  void score(const Head<SnapKV>& head, std::span<float> scores) const {
    const std::span<float> voted = protect_last(scores, window);
    if (voted.empty()) return;
    const ConstRows sums = window_votes(head, window);
    std::vector<float> memory(sums.count * voted.size());
    const Rows<float> votes(memory.data(), sums.count, voted.size());
    if (order == Order::before_pooling) {
      reduce_rows(sums, 0, 1, reduce, votes[0]);
      return pool(votes[0], kernel, pooling, voted);
    }
    for (std::size_t h = 0; h < sums.count; ++h) pool(sums[h].first(voted.size()), kernel, pooling, votes[h]);
    reduce_rows(votes, 0, 1, reduce, voted);
  }

  /// Throws Error for an even kernel, no window, or a budget that holds nothing beside the window.
  void validate(const CacheShape& shape) const {
    require_between("SnapKV: window", window, 1);
    require_odd("SnapKV: kernel", kernel);
    budget.require(window + 1, "SnapKV: window + 1", shape);
  }
};

}  // namespace kvc::inline KVC_ABI
