#pragma once
/// kvc: KV-cache compression policies for C++ inference engines. This header is all an engine includes; it needs nothing
/// but the C++20 standard library. Policies by name, at run time, are in kvc/named/any_policy.hpp, which is apart because it costs
/// compile time in a build without KVC_COMPILED.
#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/all.hpp"
#include "kvc/rotary.hpp"
#include "kvc/simd/isa.hpp"
#include "kvc/thread_pool.hpp"
#include "kvc/version.hpp"
