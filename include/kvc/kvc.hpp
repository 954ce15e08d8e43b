#pragma once
/// kvc: KV-cache compression policies for C++ inference engines. This header is all an engine includes; it needs nothing
/// but the C++20 standard library. Policies by name, at run time, are apart, in kvc/policy/any_policy.hpp: they cost compile time.
#include "kvc/cache/kv_cache.hpp"
#include "kvc/policy/ada_kv.hpp"
#include "kvc/policy/external_scores.hpp"
#include "kvc/policy/full.hpp"
#include "kvc/policy/h2o.hpp"
#include "kvc/policy/h2o_mask.hpp"
#include "kvc/policy/kivi.hpp"
#include "kvc/policy/knorm.hpp"
#include "kvc/policy/mini_cache.hpp"
#include "kvc/policy/quest.hpp"
#include "kvc/policy/razor_attention.hpp"
#include "kvc/policy/snapkv.hpp"
#include "kvc/policy/streaming_llm.hpp"
#include "kvc/simd/isa.hpp"
#include "kvc/thread_pool.hpp"
#include "kvc/version.hpp"
