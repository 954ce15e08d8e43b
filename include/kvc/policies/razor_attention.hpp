#pragma once
#include "kvc/policy/head_table.hpp"
#include "kvc/policy/policy.hpp"
#include "kvc/policy/running_mean.hpp"

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
  /// What stands for the tokens that went: their mean with the weight of them all (the paper), their mean with the weight of
  /// one token (Huawei), or nothing.
  enum class Compensation : std::uint8_t { weighted, unweighted, none };
  friend constexpr auto words_of(Compensation) {
    return words(word("weighted", Compensation::weighted), word("unweighted", Compensation::unweighted),
                 word("none", Compensation::none));
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
  When when = When::every_pass;

  static constexpr PolicyName name{"razor_attention", "Keeps retrieval heads whole, of others a window and a mean."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &RazorAttention::budget, "Slots of a compressed head; a fraction is of the whole cache."),
        parameter("heads", &RazorAttention::heads, "The retrieval heads of the model, which `analyze heads` finds."),
        parameter("local", &RazorAttention::local, "At least so many newest tokens stay.").instead_of("budget"),
        parameter("divisor", &RazorAttention::divisor, "Beside local, seen / divisor tokens stay, or none if it is 0."),
        parameter("sinks", &RazorAttention::sinks, "So many first tokens always stay."),
        parameter("compensation", &RazorAttention::compensation, "The weight of the mean of the tokens that went."),
        parameter("when", &RazorAttention::when, "After which events it compresses."));
  }

  struct Slot {
    bool mean = false;  ///< whether this is the compensation token
    auto fields() { return std::tie(mean); }
  };
  using State = RunningMean;  ///< of the tokens that went

  void evict(Head<RazorAttention>& head, Plan& plan) const {
    if (!head.acts || (heads && heads->retrieves(head.id))) return;
    const std::size_t slots = capacity(head);
    if (head.size() <= slots) return;
    plan.first(sinks);
    plan.last(slots - fixed());
    if (compensation != Compensation::none) compensate(head, head.size() - (slots - fixed()), plan);
  }

  /// Whether there are sums wherever there is a mean.
  bool accepts(const Head<RazorAttention>& head) const {
    return head.state->is_of(*head.shape) || std::ranges::find(head.slots, true, &Slot::mean) == head.slots.end();
  }

  /// Throws Error without a head table, with one of another model, or if the budget cannot hold what always stays.
  void validate(const CacheShape& shape) const {
    if (!heads)
      fail(ErrorCode::missing_feed,
           "RazorAttention: heads: no table of the model's retrieval heads; `analyze heads "
           "--out FILE` makes one, and heads=none compresses every head");
    heads->require(shape, "RazorAttention: heads");
    require_between("RazorAttention: sinks", sinks, 0);
    require_between("RazorAttention: local", local, 1);
    if (budget) budget->require(fixed() + 1, "RazorAttention: sinks, compensation token and the newest token", shape);
  }

 private:
  /// Slots that are not of the window.
  std::size_t fixed() const { return sinks + (compensation == Compensation::none ? 0 : 1); }

  /// Slots that a compressed head may hold now. What the retrieval heads hold beyond their part, the others must go without.
  std::size_t capacity(const Head<RazorAttention>& head) const {
    if (!budget) return fixed() + std::max(local, divisor == 0 ? 0 : head.seen / divisor);
    const std::size_t slots = budget->at(head.id, head.seen, *head.shape);
    if (!budget->is_fraction()) return slots;
    const double gone = double(head.seen - std::min(slots, head.seen)) / (1 - heads->share());
    return std::max(fixed() + 1, static_cast<std::size_t>(std::max(0.0, std::floor(double(head.seen) - gone))));
  }

  /// Merges slots [sinks, end) into the compensation token, which may be one of them. One that was truncated or evicted has
  /// taken its mark along; the next one then starts anew.
  void compensate(Head<RazorAttention>& head, std::size_t end, Plan& plan) const {
    const auto marked = std::ranges::find(head.slots, true, &Slot::mean);
    const bool known = marked != head.slots.end();
    const std::size_t mean = known ? static_cast<std::size_t>(marked - head.slots.begin()) : sinks;
    if (known)
      head.state->follow(head, mean);
    else
      *head.state = RunningMean(*head.shape);
    for (std::size_t slot = sinks; slot < end; ++slot)
      if (!known || slot != mean) head.state->add(head, slot, plan);
    head.state->write(head, mean, plan);
    head.slots[mean].mean = true;
    if (compensation == Compensation::weighted) plan.multiplicity(mean, static_cast<float>(head.state->tokens()));
  }
};

}  // namespace kvc::inline KVC_ABI
