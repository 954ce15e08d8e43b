// accepted
#include <kvc/policies/ada_kv.hpp>
#include <kvc/policies/external_scores.hpp>
#include <kvc/policies/full.hpp>
#include <kvc/policies/h2o.hpp>
#include <kvc/policies/kivi.hpp>
#include <kvc/policies/knorm.hpp>
#include <kvc/policies/mini_cache.hpp>
#include <kvc/policy/pipeline.hpp>
#include <kvc/policies/quest.hpp>
#include <kvc/policies/razor_attention.hpp>
#include <kvc/policies/snapkv.hpp>
#include <kvc/policies/streaming_llm.hpp>

using namespace kvc;

template <class... Evictors>
constexpr bool work_with_kivi() {
  return (sizeof(decltype(Evictors{} | KIVI{})) + ...) != 0;
}
static_assert(work_with_kivi<StreamingLLM, H2O, SnapKV, Knorm, ExternalScores, RazorAttention, Quest,
                             AdaKV>());

// Whoever keeps the same slots everywhere may merge layers, and quantize what they share.
static_assert(sizeof(decltype(StreamingLLM{} | MiniCache{} | KIVI{})) != 0);
static_assert(sizeof(decltype(Quest{} | MiniCache{} | KIVI{})) != 0);
static_assert(sizeof(decltype(Full{} | MiniCache{})) != 0);
