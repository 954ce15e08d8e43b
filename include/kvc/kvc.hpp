#pragma once
/// kvc: KV-cache compression policies for C++ inference engines. This header is all an engine includes; it needs nothing
/// but the C++20 standard library. Policies by name, at run time, are apart, in kvc/named/any_policy.hpp: they cost compile time.
#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/ada_kv.hpp"
#include "kvc/policies/external_scores.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/policies/h2o.hpp"
#include "kvc/policies/h2o_mask.hpp"
#include "kvc/policies/kivi.hpp"
#include "kvc/policies/knorm.hpp"
#include "kvc/policies/mini_cache.hpp"
#include "kvc/policies/quest.hpp"
#include "kvc/policies/razor_attention.hpp"
#include "kvc/policies/snapkv.hpp"
#include "kvc/policies/streaming_llm.hpp"
#include "kvc/simd/isa.hpp"
#include "kvc/thread_pool.hpp"
#include "kvc/version.hpp"
