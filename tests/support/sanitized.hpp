#pragma once

namespace support {

/// Sanitizers make everything ten times slower, and most of the time is the naive cache's, which is not what they look at:
/// fewer random steps do there.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool Sanitized = true;
#elif defined(__has_feature)
inline constexpr bool Sanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
inline constexpr bool Sanitized = false;
#endif

}  // namespace support
