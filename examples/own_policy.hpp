#pragma once
#include <kvc/kvc.hpp>

/// The attention that a token received, times the length of its value: a token with a tiny value adds little to any
/// output, however much it is looked at. docs/write_a_policy.md explains every line.
struct HeavyValues {
  kvc::Budget budget = 1024;
  std::size_t sinks = 4;
  std::size_t recent = 16;
  kvc::When when = kvc::When::every_pass;

  static constexpr auto parameters() {
    return kvc::list(kvc::parameter("budget", &HeavyValues::budget, "Slots that a head may hold."),
                     kvc::parameter("sinks", &HeavyValues::sinks, "So many first tokens always stay."),
                     kvc::parameter("recent", &HeavyValues::recent, "So many newest tokens always stay."),
                     kvc::parameter("when", &HeavyValues::when, "After which events it evicts."));
  }

  struct Slot {
    float attention = 0, length = 0;
  };
  kvc::Needs needs() const { return {.prompt = kvc::Feed::sums, .decode = kvc::Feed::sums}; }

  void observe(kvc::Head<HeavyValues>& head, const kvc::Observation& seen) const {
    const kvc::ConstRows values = head.values_from(seen.first_new);
    for (std::size_t i = 0; i < values.count; ++i) head.slots[seen.first_new + i].length = kvc::norm(values[i]);
    kvc::add_columns(head.slots, &Slot::attention, seen.attention);
  }
  void score(const kvc::Head<HeavyValues>& head, std::span<float> scores) const {
    for (std::size_t slot = 0; slot < scores.size(); ++slot)
      scores[slot] = head.slots[slot].attention * head.slots[slot].length;
    kvc::protect_first(scores, sinks);
    kvc::protect_last(scores, recent);
  }
  void validate(const kvc::CacheShape& shape) const {
    kvc::require_between("HeavyValues: sinks", sinks, 0);
    kvc::require_between("HeavyValues: recent", recent, 0);
    budget.require(sinks + recent + 1, "HeavyValues: sinks + recent + 1", shape);
  }
};
