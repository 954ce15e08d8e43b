#pragma once
#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// SimLayerKV (Zhang et al., "SimLayerKV: A Simple Framework for Layer-Level KV Cache Reduction", arXiv 2410.13846): a layer is
/// lazy if the prompt's last queries attend almost only to the first tokens and to the newest ones; a lazy layer keeps those,
/// the others keep everything. Authors' code: sail-sg/SimLayerKV, with thresholds of 0.9 (Llama 3), 0.85 (Qwen), 0.8 (Mistral)
/// and 0.65 (Llama 2). What is judged, and how much stays, is as in kvpress's SimLayerKVPress, which acts on prompts only
/// (`.when = When::prompt_end`): here a lazy layer stays small while tokens are generated.
struct SimLayerKV {
  double threshold = 0.9;
  std::size_t sinks = 4;
  /// A lazy layer keeps recent - window newest tokens; as in kvpress, the window itself is not part of what is judged.
  std::size_t recent = 1024;
  std::size_t window = 1;
  When when = When::every_pass;
  static constexpr EqualSlots equal_slots = EqualSlots::layer;

  static constexpr PolicyName name{"simlayerkv",
                                   "Keeps the first and the newest tokens where a layer sees only those."};
  static constexpr auto parameters() {
    return list(
        parameter("threshold", &SimLayerKV::threshold, "The share of attention above which a layer is lazy."),
        parameter("sinks", &SimLayerKV::sinks, "So many first tokens stay in a lazy layer."),
        parameter("recent", &SimLayerKV::recent, "So many newest tokens stay in a lazy layer, less the window."),
        parameter("window", &SimLayerKV::window, "So many newest queries of the prompt judge the layer."),
        parameter("when", &SimLayerKV::when, "After which events it evicts."));
  }
  Needs needs() const { return {.query_window = window}; }

  /// Judges the layer at the end of a prompt. Throws Error(missing_feed) where the prompt's queries are gone.
  void allocate(Layer<SimLayerKV> heads, std::span<std::size_t> budgets) const {
    if (heads[0].event == Event::decode) return;  // what the prompt's end has allocated holds
    const bool lazy = heads[0].size() > kept() && mass(heads) > threshold;
    std::ranges::fill(budgets, lazy ? kept() : MostTokens);
  }
  void evict(Head<SimLayerKV>& head, Plan& plan) const {
    if (!head.acts || head.size() <= head.budget) return;
    plan.first(sinks);
    plan.last(head.budget - sinks);
  }

  /// Throws Error for a threshold that is no share, or if nothing recent would stay.
  void validate(const CacheShape&) const {
    require_share("SimLayerKV: threshold", threshold);
    require_between("SimLayerKV: sinks", sinks, 0);
    require_between("SimLayerKV: window", window, 1);
    require_between("SimLayerKV: recent", recent, window + 1);
    if (when == When::make_room || when == When::every_chunk || when == When::always)
      fail(ErrorCode::invalid_argument,
           "SimLayerKV: when must be prompt_end or every_pass: the end of a prompt judges");
  }

 private:
  std::size_t kept() const { return sinks + recent - window; }

  /// The mean share of their attention that the window's queries give to the first and the newest tokens before the window.
  double mass(Layer<SimLayerKV> heads) const {
    double sum = 0, rows = 0;
    for (const Head<SimLayerKV>& head : heads) {
      const ConstRows attention = head.window_attention(window);
      if (attention.count == 0)
        fail(ErrorCode::missing_feed, "SimLayerKV: there is no open prompt whose queries could judge the layer");
      const std::size_t older = head.size() - std::min(window, head.size()), last = older - std::min(recent, older);
      for (std::size_t r = 0; r < attention.count; ++r)
        for (std::size_t slot = 0; slot < older; ++slot)
          if (slot < sinks || slot >= last) sum += double(attention[r][slot]);
      rows += double(attention.count);
    }
    return sum / rows;
  }
};

}  // namespace kvc::inline KVC_ABI
