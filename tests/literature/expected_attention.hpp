#pragma once
#include "kvc/policy/policy.hpp"
#include "kvc/rotary.hpp"

namespace literature {
using namespace kvc;

/// ExpectedAttention (Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future
/// Queries Distribution", arXiv 2510.00636): once, after the prompt, the tokens to which future queries are expected to
/// attend, times the length of their values. Queries of the prompt, without their rotation, are taken as normally
/// distributed; their mean and covariance are turned by the rotation averaged over the next `future` positions. As
/// kvpress's ExpectedAttentionPress.
struct ExpectedAttention {
  Budget budget = 1024;
  std::size_t future = 512;
  std::size_t sinks = 4;
  double epsilon = 0;

  static constexpr PolicyName name{"expected_attention", "Keeps the tokens that future queries should attend to."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &ExpectedAttention::budget, "Slots that a head keeps when a prompt ends."),
        parameter("future", &ExpectedAttention::future, "Over so many next positions the rotation is averaged."),
        parameter("sinks", &ExpectedAttention::sinks, "So many first tokens always stay, and do not count as queries."),
        parameter("epsilon", &ExpectedAttention::epsilon, "Added to the attention before the value's length counts."));
  }

  /// Sums over the prompt's queries of each query head of the group.
  struct PromptState {
    double queries = 0;
    std::vector<double> sum, squares;  ///< [group, head_dim], [group, head_dim, head_dim]
    std::size_t bytes() const { return sizeof(*this) + (sum.capacity() + squares.capacity()) * sizeof(double); }
  };
  Needs needs() const { return {.queries = true}; }
  void observe(Head<ExpectedAttention>& head, const Observation& seen) const {
    if (head.prompt == nullptr || seen.event == Event::probe) return;
    PromptState& state = *head.prompt;
    const std::size_t dim = head.shape->head_dim, group = head.group();
    state.sum.resize(group * dim);
    state.squares.resize(group * dim * dim);
    for (std::size_t t = 0; t < seen.queries_count; ++t) {
      if (static_cast<std::size_t>(head.positions[seen.first_new + t]) < sinks) continue;
      ++state.queries;
      for (std::size_t row = 0; row < group * dim; ++row) {
        const std::span<const float> query = seen.unrotated_queries[t * group + row / dim];
        const double x = query[row % dim];
        state.sum[row] += x;
        for (std::size_t c = 0; c < dim; ++c) state.squares[row * dim + c] += x * double(query[c]);
      }
    }
  }

  void score(const Head<ExpectedAttention>& head, std::span<float> scores) const {
    if (head.prompt == nullptr || head.prompt->queries == 0)
      fail(ErrorCode::missing_feed, "ExpectedAttention: there is no open prompt whose queries could be expected");
    const std::size_t dim = head.shape->head_dim, first = std::min(sinks, scores.size());
    const ConstRows keys = head.keys(), values = head.values();
    const double scale = double(head.shape->logit_scale());
    const std::span<float> others = protect_first(scores, sinks);
    std::ranges::fill(others, static_cast<float>(epsilon));
    std::vector<double> weights(others.size());
    for (std::size_t g = 0; g < head.group(); ++g) {
      const std::vector<float> expected = future_queries(head, g);
      const ConstRows products = head.products({expected.data(), dim + 1, dim});
      double largest = -HUGE_VAL, sum = 0;
      for (std::size_t i = 0; i < others.size(); ++i) {
        double spread = 0;  // key * covariance * key
        for (std::size_t c = 0; c < dim; ++c) spread += double(keys[first + i][c]) * double(products[c][first + i]);
        weights[i] = double(products[dim][first + i]) * scale + spread * scale * scale / 2;
        largest = std::max(largest, weights[i]);
      }
      for (double& weight : weights) sum += weight = std::exp(weight - largest);
      for (std::size_t i = 0; i < others.size(); ++i)
        others[i] += static_cast<float>(weights[i] / sum / double(head.group()));
    }
    for (std::size_t i = 0; i < others.size(); ++i) others[i] *= norm(values[first + i]);
  }
  void validate(const CacheShape& shape) const {
    require_between("ExpectedAttention: future", future, 1);
    require_between("ExpectedAttention: sinks", sinks, 0);
    budget.require(sinks + 1, "ExpectedAttention: sinks + 1", shape);
  }

 private:
  /// The covariance and, as the last row, the mean of a query head's future queries: [head_dim + 1, head_dim].
  std::vector<float> future_queries(const Head<ExpectedAttention>& head, std::size_t g) const {
    const PromptState& state = *head.prompt;
    const std::size_t dim = head.shape->head_dim;
    const double* sum = state.sum.data() + g * dim;
    std::vector<float> rows((dim + 1) * dim);
    for (std::size_t a = 0; a < dim; ++a) {
      rows[dim * dim + a] = static_cast<float>(sum[a] / state.queries);
      for (std::size_t b = 0; b < dim; ++b)
        rows[a * dim + b] = static_cast<float>(state.squares[(g * dim + a) * dim + b] / state.queries -
                                               sum[a] * sum[b] / state.queries / state.queries);
    }
    std::vector<float> average = average_rotation(head);
    const std::size_t pairs = average.size() / 2;
    const Rotation rotation{std::span(average).first(pairs), std::span(average).subspan(pairs)};
    const auto turn = [&](std::size_t row) { rotation.apply(head.shape->rotary, {rows.data() + row * dim, dim}); };
    for (std::size_t row = 0; row <= dim; ++row) turn(row);
    for (std::size_t a = 0; a < dim; ++a)
      for (std::size_t b = 0; b < a; ++b) std::swap(rows[a * dim + b], rows[b * dim + a]);
    for (std::size_t row = 0; row < dim; ++row) turn(row);
    return rows;
  }
  /// Cosines, then sines, of the rotation averaged over the positions that come next.
  std::vector<float> average_rotation(const HeadView& head) const {
    const std::size_t pairs = head.shape->rotary.inv_freq.size();
    std::vector<float> one(2 * pairs), average(2 * pairs);
    const Rotation rotation{std::span(one).first(pairs), std::span(one).subspan(pairs)};
    for (std::size_t m = 0; m < future; ++m) {
      rotation.set(head.shape->rotary, double(head.seen + m));
      for (std::size_t i = 0; i < one.size(); ++i) average[i] += one[i] / static_cast<float>(future);
    }
    return average;
  }
};

}  // namespace literature
