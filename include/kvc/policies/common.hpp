#pragma once
// The policies that kvc.hpp brings along: those that most programs use. Each of the others is a header of its own in this folder,
// and kvc/policies/all.hpp has them all. They are apart because every file that includes them pays for reading them.
#include "kvc/policies/ada_kv.hpp"
#include "kvc/policies/external_scores.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/policies/h2o.hpp"
#include "kvc/policies/kivi.hpp"
#include "kvc/policies/knorm.hpp"
#include "kvc/policies/mini_cache.hpp"
#include "kvc/policies/quest.hpp"
#include "kvc/policies/razor_attention.hpp"
#include "kvc/policies/snapkv.hpp"
#include "kvc/policies/streaming_llm.hpp"
