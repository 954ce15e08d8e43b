#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvc/policy/budget.hpp"
#include "kvc/policy/head_table.hpp"
#include "kvc/policy/parameters.hpp"
#include "kvc/policy/verbs.hpp"

namespace kvc::inline KVC_ABI {

/// RazorAttention (Tang et al., "RazorAttention: Efficient KV Cache Compression Through Retrieval Heads", arXiv
/// 2407.15891): retrieval heads keep every token. Every other head keeps the first `sinks`, the newest max(local, seen /
/// divisor), and one compensation token right behind the sinks: the mean key and value of the N tokens that went, whose
/// logit gets log N added. The paper's Algorithm 1 compresses a prompt; here tokens that leave the window while decoding
/// join the mean, from sums in double precision over the rows as they were stored. Where one token would go alone it is
/// its own mean and simply stays.
///
/// The authors published no code. Huawei's (mindspore-ai/golden-stick, DeployRACompressCell._compress) differs: a fixed
/// number of slots, sinks and compensation token included, weight 1, at the end of a prompt only. That is `.budget = 256,
/// .compensation = Compensation::unweighted, .when = When::prompt_end`; without their virtual token Compensation::none.
///
/// Behind KIVI's sealing the compensation token would be sealed anew whenever it changes: correct, but every time a row is
/// dead. `RazorAttention{…} | KIVI{.sinks = 5}` keeps sinks and compensation token dense. A truncate() to before the
/// newest token of the mean cannot take it apart again: the mean stays as it is if its first token does, and truncate()
/// returns false.
struct RazorAttention {
  /// What stands for the tokens that went.
  enum class Compensation : std::uint8_t {
    weighted,    ///< their mean with the weight of them all (the paper)
    unweighted,  ///< their mean with the weight of one token (Huawei)
    none,        ///< nothing
  };
  friend constexpr auto words_of(Compensation) {
    return words(word("weighted", Compensation::weighted), word("unweighted", Compensation::unweighted),
                 word("none", Compensation::none));
  }
  /// Compress after every pass, or once after a prompt.
  enum class When : std::uint8_t { always, prompt_end };
  friend constexpr auto words_of(When) {
    return words(word("always", When::always), word("prompt_end", When::prompt_end));
  }

  /// The retrieval heads of the model. None given: refused, because every head would lose tokens; `HeadTable{}` says that
  /// this is meant.
  std::optional<HeadTable> heads = std::nullopt;
  std::size_t sinks = 4;     ///< the paper's N0
  std::size_t local = 4000;  ///< the paper's S0
  std::size_t divisor = 5;   ///< the paper's C
  /// Instead of local and divisor: slots of a compressed head, sinks and compensation token included. A fraction is of the
  /// whole cache, retrieval heads included: the others hold that much less, at least sinks, compensation and newest token.
  std::optional<Budget> budget = std::nullopt;
  Compensation compensation = Compensation::weighted;
  When when = When::always;

  static constexpr PolicyName name{
      "razor_attention",
      "Keeps every token in retrieval heads, and a window and a mean of the other tokens in the others."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &RazorAttention::budget,
                  "Slots of a compressed head; a fraction is of the whole cache, retrieval heads included."),
        parameter("heads", &RazorAttention::heads, "The retrieval heads of the model, which `analyze heads` finds."),
        parameter("local", &RazorAttention::local, "At least so many newest tokens stay, by the rule of the paper.")
            .instead_of("budget"),
        parameter("divisor", &RazorAttention::divisor,
                  "With local: the newest seen / divisor tokens stay, if they are more; with 0 always local."),
        parameter("sinks", &RazorAttention::sinks, "So many first tokens always stay."),
        parameter("compensation", &RazorAttention::compensation,
                  "The weight of the mean token that stands for those that went."),
        parameter("when", &RazorAttention::when, "It compresses after every pass, or once when a prompt ends."));
  }

  /// Sums over the tokens that went.
  struct State {
    std::vector<double> key, value;
    double tokens = 0;
    Position first = 0, last = 0;  ///< of the oldest, where their mean stands, and of the newest

    std::size_t bytes() const { return sizeof(State) + (key.capacity() + value.capacity()) * sizeof(double); }
  };

  void evict(Head<RazorAttention>& head, Plan& plan) const {
    const bool acts = head.event == Event::prompt_end || (head.event == Event::decode && when == When::always);
    if (!acts || (heads && heads->retrieves(head.id))) return;
    const std::size_t slots = capacity(head);
    if (head.size() <= slots) return;
    plan.first(sinks);
    plan.last(slots - fixed());
    if (compensation != Compensation::none) compensate(head, head.size() - (slots - fixed()), plan);
  }

  /// Throws Error without a head table, with one of another model, or if the budget cannot hold what always stays.
  void validate(const CacheShape& shape) const {
    if (!heads)
      fail(ErrorCode::missing_feed,
           "RazorAttention: heads: no table of the model's retrieval heads; `analyze heads --model FILE --out "
           "heads.txt` makes one for heads=heads.txt, and heads=none compresses every head");
    heads->require(shape, "RazorAttention: heads");
    require_between("RazorAttention: sinks", sinks, 0);
    require_between("RazorAttention: local", local, 1);
    if (budget) budget->require(fixed() + 1, "RazorAttention: sinks, compensation token and the newest token", shape);
  }

 private:
  /// Slots that are not of the window.
  std::size_t fixed() const { return sinks + (compensation == Compensation::none ? 0 : 1); }

  /// Slots that a compressed head may hold now.
  std::size_t capacity(const Head<RazorAttention>& head) const {
    if (!budget) return fixed() + std::max(local, divisor == 0 ? 0 : head.seen / divisor);
    const std::size_t slots = budget->at(head.id, head.seen, *head.shape);
    if (!budget->is_fraction()) return slots;
    // What the retrieval heads hold beyond their part, the others must go without.
    const double gone = double(head.seen - std::min(slots, head.seen)) / (1 - heads->share());
    const double left = std::floor(double(head.seen) - gone);
    return std::max(fixed() + 1, left > 0 ? static_cast<std::size_t>(left) : 0);
  }

  /// Merges slots [sinks, end) into the compensation token, which may be one of them.
  void compensate(Head<RazorAttention>& head, std::size_t end, Plan& plan) const {
    const std::size_t key_dim = head.shape->head_dim, value_dim = head.shape->values_dim();
    State& state = *head.state;
    const std::size_t mean = mean_slot(head);
    if (mean == head.size()) {
      state.key.assign(key_dim, 0);
      state.value.assign(value_dim, 0);
      state.tokens = 0;
      state.first = head.positions[sinks];
    }
    const std::span<float> row = plan.scratch(key_dim + value_dim);
    const std::span<float> key = row.first(key_dim), value = row.last(value_dim);
    for (std::size_t slot = sinks; slot < end; ++slot) {
      if (slot == mean) continue;
      const double tokens = head.multiplicity.empty() ? 1 : double(head.multiplicity[slot]);
      head.read_slot(slot, key, value);
      for (std::size_t c = 0; c < key_dim; ++c) state.key[c] += tokens * double(key[c]);
      for (std::size_t c = 0; c < value_dim; ++c) state.value[c] += tokens * double(value[c]);
      state.tokens += tokens;
    }
    state.last = head.positions[end - 1];

    const std::size_t target = mean == head.size() ? sinks : mean;
    plan.keep(target);
    const std::span<float> mean_key = plan.key(target), mean_value = plan.value(target);
    for (std::size_t c = 0; c < key_dim; ++c) mean_key[c] = static_cast<float>(state.key[c] / state.tokens);
    for (std::size_t c = 0; c < value_dim; ++c) mean_value[c] = static_cast<float>(state.value[c] / state.tokens);
    if (compensation == Compensation::weighted) plan.multiplicity(target, static_cast<float>(state.tokens));
  }

  /// The slot of the compensation token; size() if there is none. It stands at the position of its oldest token, and the
  /// slot behind it is newer than its newest; otherwise it was truncated or evicted and its place taken by another token.
  static std::size_t mean_slot(const Head<RazorAttention>& head) {
    const State& state = *head.state;
    if (state.tokens == 0) return head.size();
    const auto found = std::lower_bound(head.positions.begin(), head.positions.end(), state.first);
    if (found == head.positions.end() || *found != state.first) return head.size();
    const bool behind = found + 1 == head.positions.end() || *(found + 1) > state.last;
    return behind ? static_cast<std::size_t>(found - head.positions.begin()) : head.size();
  }
};

}  // namespace kvc::inline KVC_ABI
