#pragma once
/// kvc: KV-cache compression policies for C++ inference engines. This header has the cache and the policies that most programs use;
/// it needs nothing but the C++20 standard library. kvc/policies/all.hpp has the other policies, kvc/policies/compact.hpp those that
/// need Eigen. Policies by name, at run time, are in kvc/named/any_policy.hpp. Each is apart because it costs compile time.
#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/common.hpp"
#include "kvc/rotary.hpp"
#include "kvc/simd/isa.hpp"
#include "kvc/thread_pool.hpp"
#include "kvc/version.hpp"
