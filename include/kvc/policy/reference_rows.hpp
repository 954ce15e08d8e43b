#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kvc/matrix.hpp"
#include "kvc/policy/head.hpp"
#include "kvc/rotary.hpp"

// Queries against which policies fit what a head keeps: those that later tokens will resemble, with what they find in the head as
// long as it is whole.
namespace kvc::inline KVC_ABI {

namespace detail {

/// Products of scaled queries with keys become the logits of attention, in place; `tokens`: how many each key stands for, or
/// empty.
inline void to_logits(Rows<float> products, const CacheShape& shape, std::span<const float> tokens) {
  if (shape.softcap <= 0 && tokens.empty()) return;
  for (std::size_t row = 0; row < products.count; ++row)
    for (std::size_t slot = 0; slot < products.dim; ++slot) {
      float& logit = products[row][slot];
      if (shape.softcap > 0) logit = shape.softcap * std::tanh(logit / shape.softcap);
      if (!tokens.empty()) logit += std::log(tokens[slot]);
    }
}
/// The queries of reference tokens [first, first + count), times the scale of the logits.
inline std::vector<float> scaled_queries(const ReferenceQueries& references, std::size_t first, std::size_t count,
                                         const CacheShape& shape) {
  const std::size_t group = shape.group();
  std::vector<float> scaled;
  scaled.reserve(count * group * shape.head_dim);
  for (std::size_t row = first * group; row < (first + count) * group; ++row)
    for (const float x : references.queries[row]) scaled.push_back(x * shape.logit_scale());
  return scaled;
}

}  // namespace detail

/// What a policy remembers of probes, so that it can tell later how much of a probe's attention went to the prompt: for each
/// reference query the log-sum-exp over the probe's own tokens. Part of a PromptState.
class ProbeMemory {
 public:
  /// To be called of every observation.
  void observe(const HeadView& head, const Observation& seen) {
    if (seen.event != Event::probe) return;
    const ReferenceQueries references = head.reference_queries();
    const ConstRows keys = head.keys_from(seen.first_new);
    const auto own = head.positions.subspan(seen.first_new);
    std::size_t first = 0, last = references.positions.size();
    while (first < last && references.numbers[first] < next_number_) ++first;
    while (first < last && (own.empty() || references.positions[first] < own.front())) ++first;
    constexpr std::size_t AtOnce = 64;
    const std::size_t group = head.group();
    std::vector<float> products(AtOnce * group * keys.count);
    const auto visible = [&](std::size_t t) {
      return static_cast<std::size_t>(std::ranges::upper_bound(own, references.positions[t]) - own.begin());
    };
    for (; first < last; first += AtOnce) {
      const std::size_t count = std::min(AtOnce, last - first), most = visible(first + count - 1);
      const std::vector<float> queries = detail::scaled_queries(references, first, count, *head.shape);
      const Rows<float> logits(products.data(), count * group, most);
      multiply_transposed({queries.data(), logits.count, keys.dim}, keys.subrows(0, most), logits);
      detail::to_logits(logits, *head.shape, {});
      for (std::size_t t = 0; t < count; ++t) {
        numbers_.push_back(references.numbers[first + t]);
        for (std::size_t g = 0; g < group; ++g) {
          float sum;
          lse_.push_back(log_sum_exp(logits[t * group + g].first(visible(first + t)), sum));
        }
      }
    }
    if (!references.numbers.empty()) next_number_ = references.numbers.back() + 1;
  }
  /// The log-sum-exp of one query of token `number`; none was observed: -inf.
  float lse(std::uint32_t number, std::size_t query, std::size_t group) const {
    const auto at = std::ranges::lower_bound(numbers_, number);
    if (at == numbers_.end() || *at != number) return -std::numeric_limits<float>::infinity();
    return lse_[static_cast<std::size_t>(at - numbers_.begin()) * group + query];
  }
  bool is_of_probe(std::uint32_t number) const { return std::ranges::binary_search(numbers_, number); }
  std::size_t bytes() const { return numbers_.capacity() * sizeof(std::uint32_t) + lse_.capacity() * sizeof(float); }

 private:
  std::uint32_t next_number_ = 0;
  std::vector<std::uint32_t> numbers_;  // of the tokens that were observed, ascending
  std::vector<float> lse_;              // [numbers, group]
};

/// The reference rows of one head, each a query with what it finds in the whole head:
///   * queries of probes, as they came;
///   * queries of the prompt, moved: turned back from their position t, and on to position n + (t mod Window) behind the prompt of
///     n tokens, so that they look at the whole prompt as a later token will. Without CacheShape::rotary they stay as they are.
/// Each row has a weight in (0, 1): the share of its attention that falls on the prompt. The rest of a probe's falls on the
/// probe's own tokens; of a moved query's, on the tokens before it in its window of the prompt, which would have moved with it.
class ReferenceRows {
 public:
  static constexpr std::size_t Window = 128;

  /// Of every `step`-th of the tokens that HeadView::reference_queries kept.
  ReferenceRows(const HeadView& head, const ProbeMemory& probes, std::size_t step = 1) : shape_(head.shape) {
    const std::size_t group = head.group();
    const ReferenceQueries references = head.reference_queries();
    std::vector<std::size_t> tokens;
    for (std::size_t t = 0; t < references.positions.size(); t += step) {
      tokens.push_back(t);
      const std::vector<float> queries = detail::scaled_queries(references, t, 1, *head.shape);
      queries_.insert(queries_.end(), queries.begin(), queries.end());
    }
    count_ = tokens.size() * group;
    weights_.resize(count_);
    for (std::size_t i = 0, end = 0; i < tokens.size(); i = end) {
      end = i + 1;
      if (probes.is_of_probe(references.numbers[tokens[i]])) {
        for (std::size_t g = 0; g < group; ++g)
          weights_[i * group + g] = probes.lse(references.numbers[tokens[i]], g, group);
        continue;
      }
      const auto window = [&](std::size_t at) { return slot_of(head, references.positions[tokens[at]]) / Window; };
      while (end < tokens.size() && !probes.is_of_probe(references.numbers[tokens[end]]) && window(end) == window(i))
        ++end;
      std::vector<Position> positions;
      for (std::size_t at = i; at < end; ++at) positions.push_back(references.positions[tokens[at]]);
      move(head, positions, i * group);
    }
    find_targets(head);
  }

  std::size_t count() const { return count_; }
  /// [count, value_dim]: what attention over the whole head gives.
  ConstRows outputs() const { return {outputs_.data(), count_, shape_->values_dim()}; }
  /// [count]
  std::span<const float> weights() const { return weights_; }
  /// shares [keys.count, count]: exp(logit - log-sum-exp over the whole head) of every key, a row each, and every reference row.
  void shares(ConstRows keys, Rows<float> shares) const {
    multiply_transposed(keys, {queries_.data(), count_, shape_->head_dim}, shares);
    detail::to_logits(shares, *shape_, {});
    for (std::size_t key = 0; key < shares.count; ++key) {
      for (std::size_t row = 0; row < count_; ++row) shares[key][row] -= lse_[row];
      exponentiate(shares[key]);
    }
  }

 private:
  std::span<float> query(std::size_t row) {
    return std::span(queries_).subspan(row * shape_->head_dim, shape_->head_dim);
  }
  static std::size_t slot_of(const HeadView& head, Position position) {
    return static_cast<std::size_t>(std::ranges::lower_bound(head.positions, position) - head.positions.begin());
  }
  /// The queries of some tokens of one window of the prompt; their weights become what they find in it.
  void move(const HeadView& head, std::span<const Position> positions, std::size_t first_row) {
    const std::size_t group = head.group(), begin = slot_of(head, positions.front()) / Window * Window,
                      end = std::min(slot_of(head, positions.back()) + 1, head.size());
    std::vector<float> products(positions.size() * group * (end - begin));
    const Rows<float> logits(products.data(), positions.size() * group, end - begin);
    multiply_transposed({query(first_row).data(), logits.count, shape_->head_dim},
                        head.keys().subrows(begin, end - begin), logits);
    detail::to_logits(logits, *shape_, {});
    for (std::size_t t = 0; t < positions.size(); ++t) {
      const std::size_t slot = slot_of(head, positions[t]), visible = std::min(slot + 1, end) - begin;
      const Position behind = head.positions.back() + 1 + static_cast<Position>(slot % Window);
      for (std::size_t row = t * group; row < (t + 1) * group; ++row) {
        float sum;
        weights_[first_row + row] = log_sum_exp(logits[row].first(visible), sum);
        rotate(query(first_row + row), shape_->rotary, double(behind) - double(positions[t]));
      }
    }
  }
  /// What every row finds in the whole head. A row's weight was the log-sum-exp of what competes with the head.
  void find_targets(const HeadView& head) {
    constexpr std::size_t AtOnce = 192;
    const std::size_t slots = head.size(), dim = shape_->head_dim, value_dim = shape_->values_dim();
    outputs_.resize(count_ * value_dim);
    lse_.resize(count_);
    std::vector<float> memory(std::min(AtOnce, count_) * slots), sums(AtOnce);
    for (std::size_t first = 0; first < count_; first += AtOnce) {
      const std::size_t rows = std::min(AtOnce, count_ - first);
      const Rows<float> logits(memory.data(), rows, slots),
          outputs(outputs_.data() + first * value_dim, rows, value_dim);
      multiply_transposed({queries_.data() + first * dim, rows, dim}, head.keys(), logits);
      detail::to_logits(logits, *shape_, head.multiplicity);
      for (std::size_t row = 0; row < rows; ++row) {
        lse_[first + row] = log_sum_exp(logits[row], sums[row]);
        float& weight = weights_[first + row];
        weight = 1 / (1 + std::exp(weight - lse_[first + row]));
      }
      multiply(logits, head.values(), outputs);
      for (std::size_t row = 0; row < rows; ++row)
        for (float& x : outputs[row]) x /= sums[row];
    }
  }

  const CacheShape* shape_;
  std::size_t count_ = 0;
  std::vector<float> queries_, outputs_, lse_, weights_;  // queries are scaled
};

}  // namespace kvc::inline KVC_ABI
