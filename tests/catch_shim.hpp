#pragma once

// Catch2 3 and Catch2 2 (Debian 12, Ubuntu 22.04) have different headers and the same macros.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
