#pragma once
#include "kvc/policy/policy.hpp"

namespace literature {
using namespace kvc;

/// CAKE (Qin et al., "CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences", arXiv 2503.12491): layers
/// share the cache by how much the attention of the prompt's last queries is spread (its entropy) and shifts (its
/// variance over the queries). Each time a layer of the prompt ends, the slots are shared out anew among it and those
/// before it, and they evict: the cache never holds much more than it may in the end. What is too much for a layer is
/// left to the others in proportion, so that budgets only fall from layer to layer and the cascade ends where one
/// decision at the end would; the code of the authors (antgroup/cakekv) leaves each of the others the same.
struct Cake {
  Budget budget = 1024;
  std::size_t window = 32;
  std::size_t kernel = 5;
  double tau1 = 1, tau2 = 1, gamma = 200;

  static constexpr PolicyName name{"cake", "Lets layers share the cache by how their attention spreads and shifts."};
  static constexpr auto parameters() {
    return list(parameter("budget", &Cake::budget, "Slots of a head, on average over the layers."),
                parameter("window", &Cake::window, "So many newest queries vote, and their tokens always stay."),
                parameter("kernel", &Cake::kernel, "Votes are averaged over so many neighbouring tokens."),
                parameter("tau1", &Cake::tau1, "The larger, the less the spread of a layer's attention counts."),
                parameter("tau2", &Cake::tau2, "The larger, the less its shift counts."),
                parameter("gamma", &Cake::gamma, "How much a vote's variance counts against its mean."));
  }

  /// The token's votes, as they were before anything was evicted.
  struct Slot {
    float votes = 0;
  };
  struct PromptState {
    bool measured = false;
    double spread = 0, shift = 0;
  };
  Needs needs() const { return {.query_window = window}; }

  /// The votes; the first time in a prompt they are counted.
  void score(const Head<Cake>& head, std::span<float> scores) const {
    if (!head.prompt->measured) measure(head);
    for (std::size_t slot = 0; slot < scores.size(); ++slot) scores[slot] = head.slots[slot].votes;
    protect_last(scores, window);
  }
  /// Shares out what the whole model may hold among the layers of `heads`, by preference, but to none more than it has
  /// seen.
  void cascade(Cache<Cake> heads, std::span<std::size_t> budgets) const {
    const std::size_t each = heads[0].shape->kv_heads, layers = heads.size() / each;
    std::vector<double> preference(layers);
    for (std::size_t l = 0; l < layers; ++l) {
      double spread = 0, shift = 0;
      for (const Head<Cake>& head : heads.subspan(l * each, each)) {
        spread += head.prompt->spread;
        shift += head.prompt->shift;
      }
      preference[l] = std::pow(spread, 1 / tau1) * std::pow(shift, 1 / tau2);
    }
    const double available = double(heads[0].seen) - double(window);
    double rest = (double(budgets[0]) - double(window)) * double(heads[0].shape->layers), sum = 0;
    std::vector<std::size_t> order(layers);
    for (std::size_t l = 0; l < layers; ++l) {
      order[l] = l;
      sum += preference[l];
    }
    std::ranges::sort(order, [&](std::size_t a, std::size_t b) { return preference[a] > preference[b]; });
    for (const std::size_t l : order) {  // the most preferred first: what is too much for it is left to the others
      const double slots = std::max(0.0, std::min(available, rest * preference[l] / sum));
      rest -= slots;
      sum -= preference[l];
      std::ranges::fill(budgets.subspan(l * each, each), window + static_cast<std::size_t>(slots));
    }
  }
  void validate(const CacheShape& shape) const {
    require_between("CAKE: window", window, 1);
    require_odd("CAKE: kernel", kernel);
    budget.require(window + 1, "CAKE: window + 1", shape);
  }

 private:
  /// Counts the votes of a head, their spread and their shift.
  void measure(const Head<Cake>& head) const {
    const ConstRows attention = head.window_attention(window);
    if (attention.count == 0) fail(ErrorCode::missing_feed, "CAKE: there is no open prompt whose queries could vote");
    const std::size_t group = head.group(), queries = attention.count / group,
                      older = head.size() - std::min(window, head.size());
    std::vector<float> votes(older), pooled(older);
    for (std::size_t slot = 0; slot < older; ++slot)
      for (std::size_t g = 0; g < group; ++g) {
        double mean = 0, squares = 0;
        for (std::size_t row = g; row < attention.count; row += group) {
          const double a = attention[row][slot];
          head.prompt->spread -= a * std::log(a + 1e-10);
          mean += a / double(queries);
          squares += a * a;
        }
        const double variance =
            std::max(0.0, squares - double(queries) * mean * mean) / double(std::max<std::size_t>(2, queries) - 1);
        head.prompt->shift += variance;
        votes[slot] += static_cast<float>(mean + gamma * variance);
      }
    pool(votes, kernel, Pooling::average, pooled);
    for (std::size_t slot = 0; slot < older; ++slot) head.slots[slot].votes = pooled[slot];
    head.prompt->measured = true;
  }
};

}  // namespace literature
