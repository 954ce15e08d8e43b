// accepted
#include <kvc/policy/ada_kv.hpp>
#include <kvc/policy/external_scores.hpp>
#include <kvc/policy/full.hpp>
#include <kvc/policy/h2o.hpp>
#include <kvc/policy/kivi.hpp>
#include <kvc/policy/knorm.hpp>
#include <kvc/policy/mini_cache.hpp>
#include <kvc/policy/pipeline.hpp>
#include <kvc/policy/quest.hpp>
#include <kvc/policy/razor_attention.hpp>
#include <kvc/policy/snapkv.hpp>
#include <kvc/policy/streaming_llm.hpp>

using namespace kvc;

template <class... Evictors>
constexpr bool work_with_kivi() {
  return (sizeof(decltype(Evictors{} | KIVI{})) + ...) != 0;
}
static_assert(work_with_kivi<StreamingLLM, H2O, SnapKV, Knorm, ExternalScores, RazorAttention, Quest, AdaKV<SnapKV>,
                             AdaKV<H2O>, AdaKV<Knorm>, AdaKV<ExternalScores>>());

// Whoever keeps the same slots everywhere may merge layers, and quantize what they share.
static_assert(sizeof(decltype(StreamingLLM{} | MiniCache{} | KIVI{})) != 0);
static_assert(sizeof(decltype(Quest{} | MiniCache{} | KIVI{})) != 0);
static_assert(sizeof(decltype(Full{} | MiniCache{})) != 0);
