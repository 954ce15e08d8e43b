#pragma once

/// What is not a template is `inline` in a header-only build; with KVC_COMPILED one file of the program defines it
/// (kvc/implementation.hpp) and all others only see declarations.
#if defined(KVC_COMPILED)
#define KVC_FORWARD
#else
#define KVC_FORWARD inline
#endif
