#pragma once
/// Defines the kernels and the cache's inside for builds with KVC_COMPILED: include this in exactly one .cpp file of
/// the program. All other files then compile without intrinsics, kernels and storage.
#if !defined(KVC_COMPILED)
#error "kvc/implementation.hpp: define KVC_COMPILED for the whole program (or do not include this file)"
#endif

#include "kvc/c_api/implementation.hpp"
#include "kvc/cache/implementation.hpp"
#include "kvc/codec/implementation.hpp"
#include "kvc/kernels/implementation.hpp"
#include "kvc/named/implementation.hpp"
#include "kvc/session/implementation.hpp"
