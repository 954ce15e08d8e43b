#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvc/policies/h2o.hpp"
#include "kvc/policy/policy.hpp"
#include "kvc/policy/stage.hpp"

namespace kvc::inline KVC_ABI {

/// CaM (Zhang et al., "CaM: Cache Merging for Memory-efficient LLMs Inference", ICML 2024): tokens go by the scores of another
/// policy; the value of one that goes while tokens are generated is spread over the kept tokens right behind it, with the
/// probability of its attention over theirs on average. Authors' code: zyxxmu/cam, whose variants disagree; this is kvpress's
/// CAMPress acting after every token: attention counts from the first generated token on, and what goes at the end of a prompt
/// goes for good. Chance follows from the token's position, its head and `seed`, so that forks and repetitions agree. Rewritten
/// values are sealed anew under a quantizer, which costs dead rows.
struct CaM {
  Member base = H2O{};
  Budget budget = 1024;
  std::size_t neighbours = 32;
  std::size_t seed = 0;
  When when = When::every_pass;

  static constexpr PolicyName name{"cam", "Spreads the values of tokens that go over those behind them."};
  static constexpr auto parameters() {
    return list(parameter("base", &CaM::base, "The policy whose scores decide; its own budget does not count."),
                parameter("budget", &CaM::budget, "Slots that a head may hold."),
                parameter("neighbours", &CaM::neighbours, "A value is spread over so many kept tokens."),
                parameter("seed", &CaM::seed, "Other seeds, other chances."),
                parameter("when", &CaM::when, "After which events it evicts."));
  }
  std::span<const Member> members() const { return {&base, 1}; }

  /// Attention from generated tokens.
  struct Slot {
    float mass = 0;
  };
  Needs needs() const { return {.decode = Feed::group_sums}; }
  void observe(Head<CaM>& head, const Observation& seen) const {
    if (seen.event == Event::decode) add_columns(head.slots, &Slot::mass, seen.attention);
  }
  void score(const Head<CaM>& head, std::span<float> scores) const { base.score(head.member(0), scores); }
  void evict(Head<CaM>& head, Plan& plan) const {
    if (!head.acts || head.size() <= head.budget) return;
    keep_best(plan, head.scores, head.budget);
    if (head.event != Event::decode) return;
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      if (!plan.kept(slot)) spread(head, slot, plan);
  }

  /// Throws Error without neighbours, for a base that does not score heads or turns positions, and for what the base refuses
  /// with this budget.
  void validate(const CacheShape& shape) const {
    require_between("CaM: neighbours", neighbours, 1);
    budget.require(1, "CaM: one slot", shape);
    require_scoring("CaM: base", base, Scope::head, budget, shape);
  }

 private:
  void spread(const Head<CaM>& head, std::size_t slot, Plan& plan) const {
    std::size_t count = 0, end = slot + 1;
    double mass = 0;
    for (; end < head.size() && count < neighbours; ++end)
      if (plan.kept(end)) {
        ++count;
        mass += double(head.slots[end].mass);
      }
    const auto own = double(head.slots[slot].mass);
    if (count == 0 || !(own > 0) || chance(head, slot) * mass >= own * double(count)) return;
    const std::span<float> value = plan.scratch(head.shape->values_dim());
    head.read_slot(slot, {}, value);
    for (std::size_t near = slot + 1; near < end; ++near) {
      if (!plan.kept(near)) continue;
      const std::span<float> target = plan.value(near);
      for (std::size_t c = 0; c < value.size(); ++c) target[c] += value[c] / static_cast<float>(count);
    }
  }
  /// A number in [0, 1) that looks random: the mixing function of SplitMix64.
  double chance(const HeadView& head, std::size_t slot) const {
    std::uint64_t x = (std::uint64_t{seed} << 32) ^ static_cast<std::uint64_t>(head.positions[slot]) ^
                      (std::uint64_t{head.id.layer} << 40) ^ (std::uint64_t{head.id.head} << 54);
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return double((x ^ (x >> 31)) >> 11) * 0x1p-53;
  }
};

}  // namespace kvc::inline KVC_ABI
