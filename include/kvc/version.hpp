#pragma once

// CMakeLists.txt reads the version of the package from these three lines.

/// Raised when an existing program may need a change.
#define KVC_VERSION_MAJOR 0
/// Raised when something is added that existing programs need not know; while MAJOR is 0, also for breaking changes.
#define KVC_VERSION_MINOR 1
/// Raised when only errors are corrected.
#define KVC_VERSION_PATCH 0
