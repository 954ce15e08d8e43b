#pragma once
// All policies of the library but those that need Eigen (compact.hpp, pursuit.hpp, refit.hpp). A new one adds its header and its
// name here, and is then in policy texts.
#include "kvc/policies/cam.hpp"
#include "kvc/policies/chunkkv.hpp"
#include "kvc/policies/common.hpp"
#include "kvc/policies/criticalkv.hpp"
#include "kvc/policies/d2o.hpp"
#include "kvc/policies/duo_attention.hpp"
#include "kvc/policies/expected_attention.hpp"
#include "kvc/policies/foresight.hpp"
#include "kvc/policies/keydiff.hpp"
#include "kvc/policies/kvzip.hpp"
#include "kvc/policies/lagkv.hpp"
#include "kvc/policies/r_kv.hpp"
#include "kvc/policies/rank_fusion.hpp"
#include "kvc/policies/simlayerkv.hpp"
#include "kvc/policies/think.hpp"
#include "kvc/policies/tova.hpp"

namespace kvc::inline KVC_ABI {

template <class... Policies>
struct PolicyList {};

using AllPolicies = PolicyList<AdaKV, CaM, ChunkKV, CriticalKV, D2O, DuoAttention, ExpectedAttention, ExternalScores,
                               Foresight, Full, H2O, KeyDiff, KIVI, Knorm, KVzip, LagKV, MiniCache, Quest, RankFusion,
                               RazorAttention, RKV, SimLayerKV, SnapKV, StreamingLLM, ThinK, TOVA>;

}  // namespace kvc::inline KVC_ABI
