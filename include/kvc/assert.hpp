#pragma once
#include <cassert>

/// Says at run time, in builds without NDEBUG, what a function's comment says its caller must do. Arguments that come from
/// outside the library are refused with an Error instead, in every build.
#if defined(NDEBUG)
#define KVC_ASSERT(condition) static_cast<void>(0)
#else
#define KVC_ASSERT(condition) assert(condition)
#endif
