#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/policy/policy.hpp"
#include "kvc/rotary.hpp"

namespace kvc::inline KVC_ABI {

/// ExpectedAttention (Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
/// Distribution", arXiv 2510.00636): once, after the prompt, the tokens to which future queries are expected to attend, times
/// the length of their values. Queries of the prompt, without their rotation, are taken as normally distributed; their mean and
/// covariance are turned by the rotation averaged over the next `future` positions, and the expectation of exp(q·k) is then
/// known in closed form. Authors' code: kvpress's ExpectedAttentionPress, whose defaults are ours. Differs: moments are added up
/// while the prompt comes, in double precision, so that it may come in parts and its queries need not be kept: head_dim squared
/// numbers per query head, while a prompt is open.
struct ExpectedAttention {
  Budget budget = 1024;
  std::size_t future = 512;
  std::size_t sinks = 4;
  /// kvpress uses 0.01 with AdaKV in its benchmarks.
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
    std::vector<double> sum;  ///< [group, head_dim]
    std::vector<double>
        squares;  ///< [group, head_dim, head_dim], of which the elements on and above the diagonal count
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
      for (std::size_t g = 0; g < group; ++g) {
        const float* query = seen.unrotated_queries[t * group + g].data();
        double *sum = state.sum.data() + g * dim, *squares = state.squares.data() + g * dim * dim;
        for (std::size_t a = 0; a < dim; ++a, squares += dim) {
          sum[a] += double(query[a]);
          for (std::size_t b = a; b < dim; ++b) squares[b] += double(query[a]) * double(query[b]);
        }
      }
    }
  }

  /// Expected attention times the value's length; the sinks are Protected. Throws Error(missing_feed) where a prompt's queries
  /// are gone.
  void score(const Head<ExpectedAttention>& head, std::span<float> scores) const {
    if (head.prompt == nullptr || (head.prompt->queries == 0 && scores.size() > sinks))
      fail(ErrorCode::missing_feed, "ExpectedAttention: there is no open prompt whose queries could be expected");
    const std::size_t first = std::min(sinks, scores.size());
    const ConstRows values = head.values();
    const std::span<float> others = protect_first(scores, sinks);
    if (others.empty()) return;
    std::ranges::fill(others, static_cast<float>(epsilon));
    std::vector<double> weights(others.size());
    for (std::size_t g = 0; g < head.group(); ++g) {
      expect_logits(head, g, first, weights);
      softmax(weights);
      for (std::size_t i = 0; i < others.size(); ++i)
        others[i] += static_cast<float>(weights[i] / double(head.group()));
    }
    for (std::size_t i = 0; i < others.size(); ++i) others[i] *= norm(values[first + i]);
  }

  /// Throws Error if a head may hold nothing beside the sinks.
  void validate(const CacheShape& shape) const {
    require_between("ExpectedAttention: future", future, 1);
    require_between("ExpectedAttention: sinks", sinks, 0);
    budget.require(sinks + 1, "ExpectedAttention: sinks + 1", shape);
  }

 private:
  /// The logarithms of what exp(logit) is expected to be for the slots from `first` on, by one query head of the group: with
  /// m the mean and C the covariance, key·m scale + key·C·key scale² / 2.
  void expect_logits(const Head<ExpectedAttention>& head, std::size_t g, std::size_t first,
                     std::span<double> logits) const {
    constexpr std::size_t AtOnce = 64;  // slots, so that their keys stay in the processor's cache
    const std::size_t dim = head.shape->head_dim;
    const double scale = double(head.shape->logit_scale());
    const std::vector<float> expected = future_queries(head, g);
    const ConstRows keys = head.keys(), products = head.products({expected.data(), dim + 1, dim});
    for (std::size_t begin = 0; begin < logits.size(); begin += AtOnce) {
      const std::size_t count = std::min(AtOnce, logits.size() - begin);
      double spread[AtOnce] = {};
      for (std::size_t c = 0; c < dim; ++c)
        for (std::size_t i = 0; i < count; ++i)
          spread[i] += double(keys[first + begin + i][c]) * double(products[c][first + begin + i]);
      for (std::size_t i = 0; i < count; ++i)
        logits[begin + i] = double(products[dim][first + begin + i]) * scale + spread[i] * scale * scale / 2;
    }
  }
  /// The covariance and, as the last row, the mean of a query head's future queries: [head_dim + 1, head_dim].
  std::vector<float> future_queries(const Head<ExpectedAttention>& head, std::size_t g) const {
    const PromptState& state = *head.prompt;
    const std::size_t dim = head.shape->head_dim;
    const double *sum = state.sum.data() + g * dim, *squares = state.squares.data() + g * dim * dim;
    std::vector<float> rows((dim + 1) * dim);
    for (std::size_t a = 0; a < dim; ++a) {
      rows[dim * dim + a] = static_cast<float>(sum[a] / state.queries);
      for (std::size_t b = 0; b < dim; ++b)
        rows[a * dim + b] = static_cast<float>(squares[std::min(a, b) * dim + std::max(a, b)] / state.queries -
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
  /// Cosines, then sines, of the rotation averaged over the positions that come next: of n angles in equal steps of w the mean
  /// sine and cosine are those of the middle angle, times sin(n w / 2) / (n sin(w / 2)).
  std::vector<float> average_rotation(const HeadView& head) const {
    const std::vector<float>& frequencies = head.shape->rotary.inv_freq;
    const auto count = double(future);
    std::vector<float> average(2 * frequencies.size());
    for (std::size_t i = 0; i < frequencies.size(); ++i) {
      const double step = double(frequencies[i]), middle = step * (double(head.seen) + (count - 1) / 2);
      const double sine = std::sin(step / 2);
      const double length = std::abs(sine) < 1e-9 ? 1 : std::sin(count * step / 2) / (count * sine);
      average[i] = static_cast<float>(length * std::cos(middle));
      average[frequencies.size() + i] = static_cast<float>(length * std::sin(middle));
    }
    return average;
  }
};

}  // namespace kvc::inline KVC_ABI
