#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kvc/named/any_policy.hpp"
#include "kvc/policy/parameters.hpp"
#include "kvc/policy/scoring.hpp"
#include "kvc/policy/verbs.hpp"

namespace evaluation {

/// H2O as its authors simulate it to measure accuracy: no token is ever dropped, so no byte is saved, but each generated
/// token attends only to those that H2O might have kept. Use it to repeat their figures; use H2O to save memory. Authors'
/// code: FMInference/H2O, h2o_hf/utils_hh/modify_llama.py (`LlamaAttention_heavy_hitter`). heavy = int(heavy_ratio *
/// tokens) and recent = int(recent_ratio * tokens) are fixed by the first pass; while more than heavy + recent tokens
/// are there, the next one sees the `heavy` with the most accumulated attention among all but the last `recent`, the last
/// recent - 1, and itself. What it differs in from H2O, kept as it is:
///  * one token less is seen in all, and the token that just left the recent ones is hidden for one step at least;
///  * a token that is neither heavy nor recent loses its mass, so it hardly ever returns;
///  * without recent tokens a new token does not see itself.
/// Their code has no GQA; the query heads of a group add up here and share one mask. Only single generated tokens are
/// masked: prompts, later ones too, and drafts of several tokens attend to everything.
struct H2OMask {
  double heavy_ratio = 0.1;  ///< 0.1 + 0.1 is the paper's budget of 20 %
  double recent_ratio = 0.1;

  static constexpr kvc::PolicyName name{
      "h2o_mask", "Hides tokens as the authors of H2O simulate it, but drops none and saves nothing."};
  static constexpr auto parameters() {
    return kvc::list(
        kvc::parameter("heavy_ratio", &H2OMask::heavy_ratio,
                       "So large a share of the first prompt's tokens are visible because they are heavy."),
        kvc::parameter("recent_ratio", &H2OMask::recent_ratio,
                       "So large a share of the first prompt's tokens are visible because they are new."));
  }

  struct Slot {
    float mass = 0;       ///< attention received while it was heavy or recent
    bool visible = true;  ///< to the next token
  };
  struct State {
    std::size_t heavy = 0, recent = 0;
    bool counted = false;       ///< whether the two are known
    bool sees_itself = true;    ///< whether the next token does
    std::vector<float> sorted;  // memory of hide()
    std::size_t bytes() const { return sizeof(State) + sorted.capacity() * sizeof(float); }
  };

  kvc::Needs needs() const { return {.prompt = kvc::Feed::sums, .decode = kvc::Feed::sums}; }

  void observe(kvc::Head<H2OMask>& head, const kvc::Observation& seen) const {
    if (seen.attention.count == 0) return;
    for (std::size_t slot = 0; slot < head.size(); ++slot) {
      const float sum = kvc::reduce_column(seen.attention, slot, kvc::Reduce::sum);
      head.slots[slot].mass += std::isnan(sum) ? 0 : sum;
    }
    if (seen.event == kvc::Event::prompt_chunk) return;

    State& state = *head.state;
    if (!state.counted) {
      state.heavy = static_cast<std::size_t>(heavy_ratio * double(head.seen));
      state.recent = static_cast<std::size_t>(recent_ratio * double(head.seen));
      state.counted = true;
    }
    // Where both round down to nothing, the authors' softmax runs over masked scores only; here nothing is masked.
    const std::size_t budget = state.heavy + state.recent;
    state.sees_itself = budget == 0 || head.size() <= budget || state.recent != 0;
    if (budget != 0 && head.size() > budget)
      hide(head);
    else
      for (Slot& slot : head.slots) slot.visible = true;
  }

  /// What the last pass left visible, and the new token.
  void select(const kvc::Head<H2OMask>& head, kvc::ConstRows, kvc::Selection& selection) const {
    for (std::size_t slot = 0; slot + 1 < head.size(); ++slot)
      if (head.slots[slot].visible) selection.range(slot, slot + 1);
    if (head.size() != 0 && head.state->sees_itself) selection.range(head.size() - 1, head.size());
  }

  /// Throws Error unless both ratios lie in [0, 1] and one of them is positive.
  void validate(const kvc::CacheShape&) const {
    const auto in_range = [](double ratio) { return ratio >= 0 && ratio <= 1; };
    if (!in_range(heavy_ratio) || !in_range(recent_ratio) || heavy_ratio + recent_ratio == 0)
      kvc::fail(kvc::ErrorCode::invalid_argument, "H2OMask: heavy_ratio (" + std::to_string(heavy_ratio) +
                                                      ") and recent_ratio (" + std::to_string(recent_ratio) +
                                                      ") must lie in [0, 1], and one of them must be positive");
  }

 private:
  /// Decides what the next token sees, and takes the mass of what is neither heavy nor recent.
  void hide(kvc::Head<H2OMask>& head) const {
    State& state = *head.state;
    const std::size_t others = head.size() - state.recent;
    const float limit = smallest_heavy(head, others);
    std::size_t ties = state.heavy;  // heavy tokens that have just the limit; the older ones are chosen
    for (std::size_t slot = 0; slot < others; ++slot) ties -= head.slots[slot].mass > limit;
    for (std::size_t slot = 0; slot < others; ++slot) {
      Slot& own = head.slots[slot];
      own.visible = own.mass > limit || (own.mass == limit && ties > 0);
      if (own.visible && own.mass == limit) --ties;
      if (!own.visible && state.recent != 0) own.mass = 0;
    }
    for (std::size_t slot = others; slot < head.size(); ++slot) head.slots[slot].visible = slot != others;
  }

  /// The mass of the last of the heavy tokens among the first `others` slots.
  float smallest_heavy(kvc::Head<H2OMask>& head, std::size_t others) const {
    State& state = *head.state;
    if (state.heavy == 0) return std::numeric_limits<float>::infinity();
    state.sorted.clear();
    for (std::size_t slot = 0; slot < others; ++slot) state.sorted.push_back(head.slots[slot].mass);
    const auto last = state.sorted.begin() + static_cast<std::ptrdiff_t>(state.heavy - 1);
    std::nth_element(state.sorted.begin(), last, state.sorted.end(), std::greater<>());
    const float smallest = *last;
    state.sorted.clear();  // copies of the state need not copy it
    return smallest;
  }
};

/// Makes it available to policy texts, once.
inline void add_h2o_mask() {
  [[maybe_unused]] static const bool Added = (kvc::AnyPolicy::add<H2OMask>(), true);
}

}  // namespace evaluation
