#pragma once
/// Policies chosen by name, at run time. With KVC_COMPILED this header costs little more than kvc.hpp.
#include "kvc/named/any_policy_class.hpp"
#if !defined(KVC_COMPILED)
#include "kvc/named/implementation.hpp"
#endif
