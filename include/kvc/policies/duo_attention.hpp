#pragma once
#include "kvc/policy/head_table.hpp"
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// DuoAttention as it is deployed (Xiao et al., "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming
/// Heads", arXiv 2410.10819): heads that retrieve keep every token, the others the first and the newest. Authors' code:
/// mit-han-lab/duo-attention, whose README deploys 64 sinks and 256 recent tokens; 128 and 256 are what the gates were trained
/// with, and kvpress's. Their head tables are trained gates and come with some models; `analyze heads` finds retrieval heads
/// of any model without training, and kvpress's DuoAttentionPress has a third way. RazorAttention differs by a window that
/// grows with the text and by the mean of what went.
struct DuoAttention {
  /// The retrieval heads of the model. None given: refused, because every head would lose tokens; `HeadTable{}` says that
  /// this is meant.
  std::optional<HeadTable> heads = std::nullopt;
  std::size_t sinks = 128, recent = 256;
  When when = When::every_pass;

  static constexpr PolicyName name{"duo_attention",
                                   "Keeps retrieval heads whole, of others the first and the newest tokens."};
  static constexpr auto parameters() {
    return list(
        parameter("heads", &DuoAttention::heads, "The retrieval heads of the model, which `analyze heads` finds."),
        parameter("sinks", &DuoAttention::sinks, "So many first tokens of the other heads stay."),
        parameter("recent", &DuoAttention::recent, "So many newest tokens of the other heads stay."),
        parameter("when", &DuoAttention::when, "After which events it evicts."));
  }

  void evict(Head<DuoAttention>& head, Plan& plan) const {
    if (!head.acts || (heads && heads->retrieves(head.id)) || head.size() <= sinks + recent) return;
    plan.first(sinks);
    plan.last(recent);
  }

  /// Throws Error without a head table, with one of another model, or without recent tokens.
  void validate(const CacheShape& shape) const {
    if (!heads)
      fail(ErrorCode::missing_feed,
           "DuoAttention: heads: no table of the model's retrieval heads; `analyze heads "
           "--out FILE` makes one, and heads=none compresses every head");
    heads->require(shape, "DuoAttention: heads");
    require_between("DuoAttention: sinks", sinks, 0);
    require_between("DuoAttention: recent", recent, 1);
  }
};

}  // namespace kvc::inline KVC_ABI
