#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <tuple>
#include <vector>

#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// D2O (Wan et al., "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language Models",
/// arXiv 2406.13035): the tokens with the most attention so far and the newest ones; layers share the budget by how uneven their
/// attention is, and the first two and the last keep everything. A token that goes is added to the kept one with the most
/// similar key, if it is more similar than a running mean of such similarities. Authors' code: AIoT-MLSys-Lab/D2O, whose merged
/// rows we take: the mean of the kept row and of the others, each times its similarity (the paper's weights are exponentials).
/// Differs: it begins when the prompt ends, the authors with the first generated token; the running mean is kept per head,
/// theirs is over all heads; the query heads of a group add up, theirs have keys and values of their own. Rewritten rows are
/// sealed anew under a quantizer, which costs dead rows.
struct D2O {
  Budget budget = 1024;
  std::size_t sinks = 4;
  double alpha = 0.5, beta = 0.5;
  bool layer_budgets = true, merges = true;
  When when = When::every_pass;

  static constexpr PolicyName name{"d2o", "Keeps the tokens with the most attention, and merges others into them."};
  static constexpr auto parameters() {
    return list(parameter("budget", &D2O::budget, "Slots of a head: heavy and newest tokens, half each."),
                parameter("sinks", &D2O::sinks, "So many first tokens always stay."),
                parameter("alpha", &D2O::alpha, "How much of the running mean of similarities stays."),
                parameter("beta", &D2O::beta, "How much of it is replaced."),
                parameter("layer_budgets", &D2O::layer_budgets, "Whether layers share the budget unevenly."),
                parameter("merges", &D2O::merges, "Whether tokens that go are merged into others."),
                parameter("when", &D2O::when, "After which events it evicts."));
  }

  /// Attention that the token received, and the length of its key.
  struct Slot {
    float mass = 0, length = 0;
  };
  struct State {
    double threshold = 0;
    bool started = false;
    auto fields() { return std::tie(threshold, started); }
  };
  Needs needs() const { return {.prompt = Feed::group_sums, .decode = Feed::group_sums}; }
  void observe(Head<D2O>& head, const Observation& seen) const {
    if (seen.event == Event::probe) return;
    add_columns(head.slots, &Slot::mass, seen.attention);
    const ConstRows keys = head.keys_from(seen.first_new);
    for (std::size_t i = 0; i < keys.count; ++i) head.slots[seen.first_new + i].length = norm(keys[i]);
  }
  void score(const Head<D2O>& head, std::span<float> scores) const {
    for (std::size_t slot = 0; slot < scores.size(); ++slot) scores[slot] = head.slots[slot].mass;
    protect_first(scores, sinks);
    protect_last(scores, head.budget / 2);
  }

  void allocate_all(Cache<D2O> heads, std::span<std::size_t> budgets) const {
    if (!layer_budgets || heads[0].event != Event::prompt_end) return;
    const std::size_t layers = heads[0].shape->layers, each = heads[0].shape->kv_heads;
    std::vector<double> weight(layers);
    double sum = 0;
    for (std::size_t l = 0; l < layers; ++l) sum += weight[l] = std::exp(-unevenness(heads.subspan(l * each, each)));
    for (std::size_t i = 0; i < heads.size(); ++i) {
      const std::size_t l = i / each;
      const double share = double(budgets[i]) * double(layers) * weight[l] / sum;
      budgets[i] = l < 2 || l + 1 == layers ? MostTokens : std::max(2 * sinks, static_cast<std::size_t>(share));
    }
  }
  void evict(Head<D2O>& head, Plan& plan) const {
    if (!head.acts || head.size() <= head.budget) return;
    keep_best(plan, head.scores, head.budget);
    if (merges) absorb(head, plan);
  }
  void validate(const CacheShape& shape) const {
    require_between("D2O: sinks", sinks, 0);
    budget.require(std::max<std::size_t>(2, 2 * sinks), "D2O: twice the sinks", shape);
  }

 private:
  /// The variance of each head's attention over its tokens, scaled to [0, 1] over the heads of the layer, on average.
  static double unevenness(Layer<D2O> heads) {
    std::vector<double> variance;
    for (const Head<D2O>& head : heads) {
      double mean = 0, squares = 0;
      for (const Slot& slot : head.slots) mean += double(slot.mass) / double(head.size());
      for (const Slot& slot : head.slots) squares += std::pow(double(slot.mass) - mean, 2) / double(head.size());
      variance.push_back(squares);
    }
    double low = variance[0], high = low;
    for (const double x : variance) {
      low = std::min(low, x);
      high = std::max(high, x);
    }
    double sum = 0;
    for (const double x : variance) sum += high > low ? (x - low) / (high - low) / double(heads.size()) : 0;
    return sum;
  }
  /// A token that goes, and the kept one most like it.
  struct Match {
    std::size_t from, to;
    double similarity;
  };
  static std::vector<Match> matches(const Head<D2O>& head, const Plan& plan, std::span<const std::size_t> going,
                                    ConstRows keys) {
    const ConstRows products = head.products(keys);
    std::vector<Match> found;
    for (std::size_t i = 0; i < going.size(); ++i) {
      Match best{going[i], 0, -2};
      for (std::size_t to = 0; to < head.size(); ++to) {
        if (!plan.kept(to)) continue;
        const double lengths = double(head.slots[going[i]].length) * double(head.slots[to].length);
        const double cosine = double(products[i][to]) / std::max(lengths, 1e-12);
        if (cosine > best.similarity) best = {going[i], to, cosine};
      }
      found.push_back(best);
    }
    return found;
  }
  void absorb(Head<D2O>& head, Plan& plan) const {
    const std::size_t dim = head.shape->head_dim, value_dim = head.shape->values_dim();
    std::vector<std::size_t> going;
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      if (!plan.kept(slot)) going.push_back(slot);
    std::vector<float> keys(going.size() * dim), value(value_dim);
    for (std::size_t i = 0; i < going.size(); ++i) head.read_slot(going[i], std::span(keys).subspan(i * dim, dim), {});
    const std::vector<Match> found = matches(head, plan, going, {keys.data(), going.size(), dim});
    double mean = 0;
    for (const Match& match : found) mean += match.similarity / double(found.size());
    State& state = *head.state;
    state.threshold = state.started ? alpha * state.threshold + beta * mean : mean;
    state.started = true;
    std::vector<float> tokens(head.size(), 1.0f);
    for (std::size_t i = 0; i < found.size(); ++i) {
      const Match& match = found[i];
      if (match.similarity < state.threshold) continue;
      ++tokens[match.to];
      head.read_slot(match.from, {}, value);
      const auto weight = static_cast<float>(match.similarity);
      for (std::size_t c = 0; c < dim; ++c) plan.key(match.to)[c] += weight * keys[i * dim + c];
      for (std::size_t c = 0; c < value_dim; ++c) plan.value(match.to)[c] += weight * value[c];
    }
    for (std::size_t slot = 0; slot < head.size(); ++slot) {
      if (tokens[slot] == 1) continue;
      for (float& x : plan.key(slot)) x /= tokens[slot];
      for (float& x : plan.value(slot)) x /= tokens[slot];
      head.slots[slot].length = norm(plan.key(slot));
    }
  }
};

}  // namespace kvc::inline KVC_ABI
