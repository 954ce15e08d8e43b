#pragma once
#include <cmath>
#include <kvc/kvc.hpp>

/// The attention that a token received, times the length of its value: a token with a tiny value adds little to any
/// output, however much it is looked at. docs/write_a_policy.md explains every line.
struct HeavyValues {
  kvc::Budget budget = 1024;
  std::size_t sinks = 4;
  std::size_t recent = 16;

  static constexpr auto parameters() {
    return kvc::list(kvc::parameter("budget", &HeavyValues::budget, "Slots that a head may hold."),
                     kvc::parameter("sinks", &HeavyValues::sinks, "So many first tokens always stay."),
                     kvc::parameter("recent", &HeavyValues::recent, "So many newest tokens always stay."));
  }

  struct Slot {
    float attention = 0, length = 0;
  };
  kvc::Needs needs() const { return {.prompt = kvc::Feed::sums, .decode = kvc::Feed::sums}; }

  void observe(kvc::Head<HeavyValues>& head, const kvc::Observation& seen) const {
    const kvc::ConstRows values = head.values_from(seen.first_new);
    for (std::size_t i = 0; i < values.count; ++i) {
      float squares = 0;
      for (const float x : values[i]) squares += x * x;
      head.slots[seen.first_new + i].length = std::sqrt(squares);
    }
    for (std::size_t slot = 0; slot < head.size() && seen.attention.count != 0; ++slot)
      head.slots[slot].attention += kvc::reduce_column(seen.attention, slot, kvc::Reduce::sum);
  }
  void evict(kvc::Head<HeavyValues>& head, kvc::Plan& plan) const {
    if (head.event == kvc::Event::prompt_chunk || head.size() <= head.budget) return;
    const std::span<float> scores = plan.scratch(head.size());
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      scores[slot] = head.slots[slot].attention * head.slots[slot].length;
    plan.first(sinks);
    plan.last(recent);
    plan.top(scores, head.budget);
  }
  void validate(const kvc::CacheShape& shape) const {
    kvc::require_between("HeavyValues: sinks", sinks, 0);
    kvc::require_between("HeavyValues: recent", recent, 0);
    budget.require(sinks + recent + 1, "HeavyValues: sinks + recent + 1", shape);
  }
};
