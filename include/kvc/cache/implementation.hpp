#pragma once
/// Everything of the cache that is no template: in a header-only build KVCache includes it, with KVC_COMPILED one file of the
/// program does, through kvc/implementation.hpp.
#include "kvc/cache/batch.hpp"
#include "kvc/cache/calls.hpp"
#include "kvc/cache/editing.hpp"
