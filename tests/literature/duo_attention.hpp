#pragma once
#include "kvc/policy/head_table.hpp"
#include "kvc/policy/policy.hpp"

namespace literature {
using namespace kvc;

/// DuoAttention as it is deployed (Xiao et al., "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and
/// Streaming Heads", arXiv 2410.10819): heads that retrieve keep every token, the others the first and the newest.
struct DuoAttention {
  HeadTable heads = {};
  std::size_t sinks = 128, recent = 256;
  When when = When::every_pass;

  static constexpr PolicyName name{"duo_attention", "Keeps all tokens where a head retrieves, else sinks and newest."};
  static constexpr auto parameters() {
    return list(parameter("heads", &DuoAttention::heads, "The heads that retrieve."),
                parameter("sinks", &DuoAttention::sinks, "So many first tokens stay."),
                parameter("recent", &DuoAttention::recent, "So many newest tokens stay."),
                parameter("when", &DuoAttention::when, "After which events it evicts."));
  }
  void evict(Head<DuoAttention>& head, Plan& plan) const {
    if (!head.acts || heads.retrieves(head.id) || head.size() <= sinks + recent) return;
    plan.first(sinks);
    plan.last(recent);
  }
  void validate(const CacheShape& shape) const {
    require_between("DuoAttention: sinks", sinks, 0);
    require_between("DuoAttention: recent", recent, 1);
    heads.require(shape, "DuoAttention");
  }
};

}  // namespace literature
