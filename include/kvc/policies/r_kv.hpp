#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <tuple>
#include <vector>

#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// R-KV (Cai et al., "R-KV: Redundancy-aware KV Cache Compression for Reasoning Models", arXiv 2505.24133), for long chains of
/// thought that say the same again and again: every `interval` generated tokens, and after a prompt, the tokens that matter to
/// the newest queries and whose keys repeat no other's. Authors' code: Zefan-Cai/R-KV, rkv/compression/r1_kv.py, whose defaults
/// are ours; the paper has lambda 0.1. Importance is the attention of the newest `window` queries, over the tokens before them
/// alone; redundancy is the softmax of the mean cosine that other keys have with a key, where each of them leaves out the newest
/// key that it repeats (cosine above `similar`), so that of duplicates the newest stays. Where a key repeats none, the authors'
/// code leaves out the first key instead; nothing is left out here. It takes products of all pairs of keys: meant for heads of
/// budget + interval tokens, it is slow on long prompts.
struct RKV {
  Budget budget = 1024;
  std::size_t interval = 128, window = 8, kernel = 7;
  double lambda = 0.07, similar = 0.5;
  When when = When::every_pass;

  static constexpr PolicyName name{"r_kv", "Keeps the tokens that matter to the newest queries and repeat no others."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &RKV::budget, "Slots of a head after it has evicted, the window included."),
        parameter("interval", &RKV::interval, "It evicts when a head has so many generated tokens beyond the budget."),
        parameter("window", &RKV::window, "So many newest queries decide, and their tokens always stay."),
        parameter("kernel", &RKV::kernel, "Importance is the maximum over so many neighbouring tokens, an odd number."),
        parameter("lambda", &RKV::lambda, "The weight of importance; redundancy has the rest."),
        parameter("similar", &RKV::similar, "The cosine above which a key repeats another."),
        parameter("when", &RKV::when, "After which events it evicts."));
  }

  /// The newest queries, oldest first, as they came.
  struct State {
    std::vector<float> queries;  ///< [queries * group, head_dim]
    auto fields() { return std::tie(queries); }
    std::size_t bytes() const { return sizeof(State) + queries.capacity() * sizeof(float); }
  };
  Needs needs() const { return {.queries = true}; }
  void observe(Head<RKV>& head, const Observation& seen) const {
    if (seen.event == Event::probe) return;
    std::vector<float>& ring = head.state->queries;
    const std::size_t row = head.group() * head.shape->head_dim, most = window * row;
    const std::size_t fresh = std::min(seen.queries_count, window), older = std::min(ring.size(), most - fresh * row);
    ring.reserve(most);
    ring.erase(ring.begin(), ring.end() - static_cast<std::ptrdiff_t>(older));
    for (std::size_t r = (seen.queries_count - fresh) * head.group(); r < seen.queries.count; ++r)
      ring.insert(ring.end(), seen.queries[r].begin(), seen.queries[r].end());
  }

  /// lambda * importance - (1 - lambda) * redundancy; the window is Protected. Nothing is computed where nothing is evicted.
  void score(const Head<RKV>& head, std::span<float> scores) const {
    const std::span<float> others = protect_last(scores, window);
    if (others.empty() || waits(head)) return;
    std::vector<float> importance(others.size());
    attended(head, importance);
    pool(importance, kernel, Pooling::max, others);
    const std::vector<double> repeated = redundancy(head);
    for (std::size_t slot = 0; slot < others.size(); ++slot)
      others[slot] = static_cast<float>(lambda * double(others[slot]) - (1 - lambda) * repeated[slot]);
  }
  void evict(Head<RKV>& head, Plan& plan) const {
    if (head.acts && head.size() > head.budget && !waits(head)) keep_best(plan, head.scores, head.budget);
  }

  /// Whether the queries are whole ones, and no more than the window.
  bool accepts(const Head<RKV>& head) const {
    const std::size_t row = head.group() * head.shape->head_dim, floats = head.state->queries.size();
    return floats % row == 0 && floats / row <= window;
  }

  /// Throws Error for an even kernel, no window, or a budget that holds nothing beside the window.
  void validate(const CacheShape& shape) const {
    require_between("RKV: interval", interval, 1);
    require_between("RKV: window", window, 1);
    require_odd("RKV: kernel", kernel);
    require_share("RKV: lambda", lambda);
    budget.require(window + 1, "RKV: window + 1", shape);
  }

 private:
  bool waits(const HeadView& head) const {
    return head.event == Event::decode && head.size() < std::min(head.budget, MostTokens) + interval;
  }

  /// The attention of the newest queries to the tokens before the window: of the heads of a group the highest logit counts.
  void attended(const Head<RKV>& head, std::span<float> importance) const {
    const std::size_t dim = head.shape->head_dim, group = head.group(), queries = head.state->queries.size() / dim;
    const ConstRows products = head.products({head.state->queries.data(), queries, dim});
    const float scale = head.shape->logit_scale(), cap = head.shape->softcap;
    std::vector<float> logits(importance.size());
    std::vector<double> shares(importance.size());
    for (std::size_t first = 0; first < queries; first += group) {
      reduce_rows(products.subrows(first, group), 0, 1, Reduce::max, logits);
      for (std::size_t slot = 0; slot < logits.size(); ++slot)
        shares[slot] = double(cap > 0 ? cap * std::tanh(logits[slot] * scale / cap) : logits[slot] * scale);
      softmax(shares);
      for (std::size_t slot = 0; slot < logits.size(); ++slot)
        importance[slot] += static_cast<float>(shares[slot] * double(group) / double(queries));
    }
  }
  /// The softmax over all slots of how similar other keys are to each, on average.
  std::vector<double> redundancy(const Head<RKV>& head) const {
    constexpr std::size_t AtOnce = 64;  // rows of products
    const ConstRows keys = head.keys();
    std::vector<float> lengths(keys.count), some(AtOnce * keys.dim);
    for (std::size_t slot = 0; slot < keys.count; ++slot) lengths[slot] = std::max(norm(keys[slot]), 1e-8f);
    std::vector<double> means(keys.count);
    for (std::size_t begin = 0; begin < keys.count; begin += AtOnce) {
      const std::size_t count = std::min(AtOnce, keys.count - begin);
      for (std::size_t i = 0; i < count; ++i)
        for (std::size_t c = 0; c < keys.dim; ++c) some[i * keys.dim + c] = keys[begin + i][c] / lengths[begin + i];
      const ConstRows products = head.products({some.data(), count, keys.dim});
      for (std::size_t i = 0; i < count; ++i) add_row(products[i], lengths, begin + i, means);
    }
    softmax(means);
    return means;
  }
  /// Adds the cosines of key `own` with the others, but for itself and the newest that it repeats.
  void add_row(std::span<const float> products, std::span<const float> lengths, std::size_t own,
               std::span<double> means) const {
    const auto cosine = [&](std::size_t slot) { return double(products[slot]) / double(lengths[slot]); };
    std::size_t newest = means.size();
    while (newest > 0 && (newest - 1 == own || !(cosine(newest - 1) > similar))) --newest;
    for (std::size_t slot = 0; slot < means.size(); ++slot)
      if (slot != own && slot + 1 != newest) means[slot] += cosine(slot) / double(means.size());
  }
};

}  // namespace kvc::inline KVC_ABI
