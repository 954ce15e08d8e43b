#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "kvc/policy/scoring.hpp"
#include "kvc/policy/verbs.hpp"

namespace kvc {

/// Quest (Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", arXiv 2406.10774):
/// evicts nothing; every step attends to the pages of tokens whose keys could answer its query best. A page's upper
/// bound comes from the smallest and largest value of each key channel in it. Authors' code: mit-han-lab/Quest.
/// Differs: their heads choose one by one (they had no GQA), here the query heads of a group read the same pages,
/// chosen by their largest bound.
struct Quest {
  std::size_t tokens = 1024;     ///< that a step attends to, in whole pages, at least 3 of them
  std::size_t page = 16;         ///< tokens per page
  std::size_t dense_layers = 2;  ///< first layers that attend to everything
  Reduce reduce = Reduce::max;   ///< over the bounds of a group's query heads

  /// The channel ranges of the pages.
  struct State {
    std::vector<float> low, high;  // [pages, head_dim]
  };

  /// Brings the ranges of the pages from slot `from` on up to date.
  void index(Head<Quest>& head, std::size_t from) const {
    const std::size_t dim = head.shape->head_dim, pages = (head.size() + page - 1) / page;
    State& state = *head.state;
    state.low.resize(pages * dim);
    state.high.resize(pages * dim);
    const std::size_t first = std::min(from, head.size()) / page;
    if (first >= pages) return;

    const ConstRows keys = head.keys_from(first * page);
    for (std::size_t p = first; p < pages; ++p) {
      float* low = state.low.data() + p * dim;
      float* high = state.high.data() + p * dim;
      std::fill_n(low, dim, std::numeric_limits<float>::infinity());
      std::fill_n(high, dim, -std::numeric_limits<float>::infinity());
      for (std::size_t slot = p * page; slot < std::min(head.size(), (p + 1) * page); ++slot) {
        const std::span<const float> key = keys[slot - first * page];
        for (std::size_t c = 0; c < dim; ++c) {
          low[c] = std::min(low[c], key[c]);
          high[c] = std::max(high[c], key[c]);
        }
      }
    }
  }

  /// The last page, where the newest tokens are, and the best of the others; of equal bounds the older page.
  void select(const Head<Quest>& head, ConstRows queries, Selection& selection) const {
    const std::size_t pages = (head.size() + page - 1) / page, wanted = std::max<std::size_t>(3, tokens / page);
    if (head.id.layer < dense_layers || pages <= wanted) return selection.range(0, head.size());

    const std::size_t others = pages - 1;
    const std::span<float> memory = selection.scratch(2 * others);
    const std::span<float> bounds = memory.first(others), sorted = memory.last(others);
    for (std::size_t p = 0; p < others; ++p) bounds[p] = bound(*head.state, p, queries);
    std::copy(bounds.begin(), bounds.end(), sorted.begin());
    const auto last = sorted.begin() + static_cast<std::ptrdiff_t>(wanted - 2);
    std::nth_element(sorted.begin(), last, sorted.end(), std::greater<>());

    const float limit = *last;  // the lowest bound that is still read
    std::size_t free = wanted - 1;
    for (const float value : bounds) free -= value > limit;
    for (std::size_t p = 0; p < others; ++p) {
      const bool tie = bounds[p] == limit && free > 0;
      if (tie) --free;
      if (tie || bounds[p] > limit) selection.range(p * page, (p + 1) * page);
    }
    selection.range(others * page, head.size());
  }

  /// Throws Error if pages are empty.
  void validate(const CacheShape&) const {
    if (page == 0) fail(ErrorCode::invalid_argument, "Quest: page must be at least 1");
  }

 private:
  /// At least the largest logit, before scaling, that the queries have with any key of the page (if `reduce` is max).
  float bound(const State& state, std::size_t p, ConstRows queries) const {
    const std::size_t dim = queries.dim;
    const float* low = state.low.data() + p * dim;
    const float* high = state.high.data() + p * dim;
    float result = reduce == Reduce::max ? -std::numeric_limits<float>::infinity() : 0.0f;
    for (std::size_t row = 0; row < queries.count; ++row) {
      const std::span<const float> query = queries[row];
      float sum = 0;
      for (std::size_t c = 0; c < dim; ++c) sum += std::max(query[c] * low[c], query[c] * high[c]);
      result = reduce == Reduce::max ? std::max(result, sum) : result + sum;
    }
    return std::isnan(result) ? std::numeric_limits<float>::infinity() : result;  // overflow must not lose a page
  }
};

}  // namespace kvc
