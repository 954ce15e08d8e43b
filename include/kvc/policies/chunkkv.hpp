#pragma once
#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "kvc/policies/snapkv.hpp"
#include "kvc/policy/policy.hpp"
#include "kvc/policy/stage.hpp"

namespace kvc::inline KVC_ABI {

/// ChunkKV (Liu et al., "ChunkKV: Semantic-Preserving KV Cache Compression for Efficient Long-Context LLM Inference", arXiv
/// 2502.00299): once, after the prompt, whole chunks of neighbouring tokens by the scores of another policy, summed over the
/// heads of the layer and averaged over the chunk, so that all heads of a layer keep the same tokens. What is left after the
/// last whole chunk is a chunk of its own. As kvpress's ChunkKVPress, but for the budget: it is filled to the last slot, with
/// the first tokens of the best chunk that does not fit any more, where kvpress keeps int(chunks * keep) chunks, which may be
/// more or fewer tokens. Slots that the base protects stay, and the rest of their chunk comes next. The paper's reuse of one
/// layer's choice in the layers above is not here. `budget` counts, the base's own does not.
struct ChunkKV {
  Member base = SnapKV{};
  Budget budget = 1024;
  std::size_t chunk = 20;
  static constexpr EqualSlots equal_slots = EqualSlots::layer;

  static constexpr PolicyName name{"chunkkv", "Keeps whole chunks of neighbouring tokens by the scores of base."};
  static constexpr auto parameters() {
    return list(parameter("base", &ChunkKV::base, "The policy whose scores decide; its own budget does not count."),
                parameter("budget", &ChunkKV::budget, "Slots that a head keeps when a prompt ends."),
                parameter("chunk", &ChunkKV::chunk, "So many neighbouring tokens stay or go together."));
  }
  std::span<const Member> members() const { return {&base, 1}; }

  /// Each token's chunk's score.
  void score_layer(Layer<ChunkKV> heads, ScoreSpans scores) const {
    std::vector<AnyHead> same;
    for (const Head<ChunkKV>& head : heads) same.push_back(head.member(0));
    base.score(same, scores);
    share_scores<ChunkKV>(heads, scores);
    for (const std::span<float> each : scores)
      for (std::size_t begin = 0; begin < each.size(); begin += chunk)
        average(each.subspan(begin, std::min(chunk, each.size() - begin)));
  }

  /// Throws Error for a base that does not score heads or layers, or turns positions, and for what the base refuses with this
  /// budget.
  void validate(const CacheShape& shape) const {
    require_between("ChunkKV: chunk", chunk, 1);
    budget.require(1, "ChunkKV: one slot", shape);
    require_scoring("ChunkKV: base", base, Scope::layer, budget, shape);
  }

 private:
  static void average(std::span<float> chunk) {
    double sum = 0;
    for (const float score : chunk) sum += double(score);
    const auto mean = static_cast<float>(sum / double(chunk.size()));
    for (float& score : chunk)
      if (score != Protected) score = mean == Protected ? std::numeric_limits<float>::max() : mean;
  }
};

}  // namespace kvc::inline KVC_ABI
