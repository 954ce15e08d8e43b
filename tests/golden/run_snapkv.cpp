#include <kvc/policies/snapkv.hpp>

#include <memory>

#include "golden/one_shot.hpp"

namespace golden {
namespace {

/// Keeps everything and writes down how SnapKV scores the tokens of each head when the prompt ends.
struct Scores {
  kvc::SnapKV policy;
  std::shared_ptr<std::vector<float>> scores;  // [heads, tokens before the window]
  kvc::Member member = policy;

  std::span<const kvc::Member> members() const { return {&member, 1}; }
  void evict(kvc::Head<Scores>& head, kvc::Plan&) const {
    if (head.event != kvc::Event::prompt_end) return;
    std::vector<float> all(head.size());
    member.score(head.member(0), all);
    const std::size_t voted = all.size() - std::min(policy.window, all.size());
    scores->resize(head.shape->kv_heads * voted);
    std::copy_n(all.begin(), voted, scores->begin() + std::ptrdiff_t(head.id.head * voted));
  }
};

/// The authors' code (variant official_query_head), or KVCache-Factory's reduction over the group before pooling.
bool accepts(const Case& golden) {
  return golden.policy() == "snapkv" && golden.has("q_dec") && golden.has("kept_idx") &&
         golden.has_parameter("window_size") && golden.has_parameter("max_capacity_prompt");
}

void run(const Case& golden, Check& check) {
  // Without an own reduction the reference works on keys and values repeated to the query heads.
  const std::size_t cache_heads = golden.shape("kept_idx", 2)[0], kv_heads = golden.shape("k", 3)[0];
  OneShot shot(golden, check, cache_heads != kv_heads, golden.count("window_size"), "pooled_scores");
  const std::string pooling = golden.word("pooling", "avgpool");
  const kvc::SnapKV policy{
      .budget = golden.count("max_capacity_prompt"),
      .window = shot.window,
      .kernel = golden.count("kernel_size", 5),
      .pooling = pooling == "maxpool" || pooling == "max" ? kvc::Pooling::max : kvc::Pooling::average,
      .reduce = reduce_of(golden, kvc::Reduce::mean)};
  const std::size_t prompt = shot.feeder.tokens();
  every_way(check, prompt, [&](std::size_t chunk) {
    const auto scores = std::make_shared<std::vector<float>>();
    kvc::KVCache watched(shot.feeder.shape(), Scores{policy, scores}, in_float());
    shot.feeder.prompt(watched, 0, prompt, chunk);
    kvc::KVCache cache(shot.feeder.shape(), policy, in_float());
    shot.feeder.prompt(cache, 0, prompt, chunk);
    shot.compare(cache, *scores);
  });
}

}  // namespace

extern const Runner SnapKVRunner;
const Runner SnapKVRunner{accepts, run};

}  // namespace golden
