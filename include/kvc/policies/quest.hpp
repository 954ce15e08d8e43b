#pragma once
#include <functional>
#include <limits>
#include <tuple>

#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// Quest (Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", arXiv 2406.10774):
/// evicts nothing; every step attends to the pages of tokens whose keys could answer its query best. A page's upper
/// bound comes from the smallest and largest value of each key channel in it. Authors' code: mit-han-lab/Quest.
/// Differs: their heads choose one by one (they had no GQA), here the query heads of a group read the same pages,
/// chosen by their largest bound.
struct Quest {
  std::size_t tokens = 1024;
  std::size_t page = 16;
  std::size_t dense_layers = 2;
  Reduce reduce = Reduce::max;

  static constexpr PolicyName name{"quest", "Keeps every token, but attends only to the pages that could matter most."};
  static constexpr auto parameters() {
    return list(
        parameter("tokens", &Quest::tokens, "A step attends to so many tokens, in whole pages, at least 3 of them."),
        parameter("page", &Quest::page, "So many neighbouring tokens form a page."),
        parameter("dense_layers", &Quest::dense_layers, "So many first layers attend to every token."),
        parameter("reduce", &Quest::reduce, "How the bounds of the query heads of a group become one."));
  }

  /// The channel ranges of the pages, 16 pages at a time so that their bounds are computed side by side.
  struct State {
    std::vector<float> low, high;  // [pages / 16, head_dim, 16]
    std::size_t slots = 0;         // that they cover

    auto fields() { return std::tie(low, high, slots); }
    std::size_t bytes() const { return sizeof(State) + (low.capacity() + high.capacity()) * sizeof(float); }
  };

  /// Brings the ranges of the pages from slot `from` on up to date. Slots behind those already covered widen their page's
  /// ranges; from an earlier one on, pages are read again.
  void index(Head<Quest>& head, std::size_t from) const {
    const std::size_t dim = head.shape->head_dim, pages = pages_of(head.size());
    State& state = *head.state;
    const std::size_t first = std::min(from, head.size()) / page;
    const std::size_t begin = from == state.slots ? std::min(from, head.size()) : first * page;
    const std::size_t floats = (pages + PagesAtOnce - 1) / PagesAtOnce * PagesAtOnce * dim;
    state.low.resize(floats);
    state.high.resize(floats);
    for (std::size_t p = pages; p < std::min(pages_of(state.slots), floats / dim); ++p)
      for (std::size_t c = 0; c < dim; ++c)  // pages that went leave nothing behind
        state.low[place_of(p, dim) + c * PagesAtOnce] = state.high[place_of(p, dim) + c * PagesAtOnce] = 0;
    state.slots = head.size();
    if (begin >= head.size()) return;

    const ConstRows keys = head.keys_from(begin);
    for (std::size_t slot = begin; slot < head.size(); ++slot) {
      const std::span<const float> key = keys[slot - begin];
      const std::size_t place = place_of(slot / page, dim);
      float* low = state.low.data() + place;
      float* high = state.high.data() + place;
      const bool opens = slot % page == 0;
      for (std::size_t c = 0; c < dim; ++c) {
        low[c * PagesAtOnce] = opens ? key[c] : std::min(low[c * PagesAtOnce], key[c]);
        high[c * PagesAtOnce] = opens ? key[c] : std::max(high[c * PagesAtOnce], key[c]);
      }
    }
  }

  /// The last page, where the newest tokens are, and the best of the others; of equal bounds the older page.
  void select(const Head<Quest>& head, ConstRows queries, Selection& selection) const {
    const std::size_t pages = pages_of(head.size()), wanted = std::max<std::size_t>(3, tokens / page);
    if (head.id.layer < dense_layers || pages <= wanted) return selection.range(0, head.size());

    const std::size_t others = pages - 1;
    const std::span<float> memory = selection.scratch(2 * others);
    const std::span<float> bounds = memory.first(others), sorted = memory.last(others);
    for (std::size_t p = 0; p < others; p += PagesAtOnce)
      bound_pages(*head.state, p, queries, bounds.subspan(p, std::min(PagesAtOnce, others - p)));
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

  /// Whether the ranges are those of the head's pages.
  bool accepts(const Head<Quest>& head) const {
    const std::size_t floats =
        (pages_of(head.size()) + PagesAtOnce - 1) / PagesAtOnce * PagesAtOnce * head.shape->head_dim;
    return head.state->slots == head.size() && head.state->low.size() == floats && head.state->high.size() == floats;
  }

  /// Throws Error if pages are empty or larger than any cache.
  void validate(const CacheShape&) const { require_between("Quest: page", page, 1); }

 private:
  static constexpr std::size_t PagesAtOnce = SlotsAtOnce;  ///< pages whose bounds are computed together

  /// How many pages so many slots take.
  std::size_t pages_of(std::size_t slots) const { return slots / page + (slots % page != 0); }
  /// Where the first channel of a page lies.
  static std::size_t place_of(std::size_t p, std::size_t dim) {
    return p / PagesAtOnce * PagesAtOnce * dim + p % PagesAtOnce;
  }

  /// For pages from `p` on: at least the largest logit, before scaling, that the queries have with any of the page's keys (if
  /// `reduce` is max). The largest product with a channel is the one with the end of its range on the query's side.
  void bound_pages(const State& state, std::size_t p, ConstRows queries, std::span<float> bounds) const {
    const float *low = state.low.data() + place_of(p, queries.dim),
                *high = state.high.data() + place_of(p, queries.dim);
    float results[PagesAtOnce];
    std::fill_n(results, PagesAtOnce, reduce == Reduce::max ? -std::numeric_limits<float>::infinity() : 0.0f);
    for (std::size_t row = 0; row < queries.count; ++row) {
      const float* query = queries[row].data();
      float sums[PagesAtOnce] = {};
      const auto ends = [&](std::size_t c) { return (query[c] > 0 ? high : low) + c * PagesAtOnce; };
      std::size_t c = 0;
      for (; c + 4 <= queries.dim; c += 4) {  // four at a time: the sums are written to memory after each step
        const float *a = ends(c), *b = ends(c + 1), *d = ends(c + 2), *e = ends(c + 3), *q = query + c;
        for (std::size_t i = 0; i < PagesAtOnce; ++i)
          sums[i] = sums[i] + q[0] * a[i] + q[1] * b[i] + q[2] * d[i] + q[3] * e[i];
      }
      for (; c < queries.dim; ++c)
        for (std::size_t i = 0; i < PagesAtOnce; ++i) sums[i] += query[c] * ends(c)[i];
      for (std::size_t i = 0; i < PagesAtOnce; ++i)
        results[i] = reduce == Reduce::max ? std::max(results[i], sums[i]) : results[i] + sums[i];
    }
    for (std::size_t i = 0; i < bounds.size(); ++i)  // overflow must not lose a page
      bounds[i] = std::isnan(results[i]) ? std::numeric_limits<float>::infinity() : results[i];
  }
};

}  // namespace kvc::inline KVC_ABI
