#pragma once
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "kvc/session.hpp"

/// Sessions in memory.
namespace support {

using Bytes = std::vector<std::byte>;

/// Of forks that are saved together.
inline Bytes saved(std::span<const kvc::CacheCore* const> forks, const kvc::SessionOptions& options = {}) {
  Bytes bytes;
  kvc::save(
      forks,
      [&](std::span<const std::byte> more) {
        bytes.insert(bytes.end(), more.begin(), more.end());
        return true;
      },
      options);
  return bytes;
}
inline Bytes saved(const kvc::CacheCore& cache, const kvc::SessionOptions& options = {}) {
  const kvc::CacheCore* const one = &cache;
  return saved(std::span(&one, 1), options);
}

/// A copy of it where its blocks can be lent.
inline kvc::SessionInMemory in_memory(std::span<const std::byte> session) {
  constexpr std::align_val_t Alignment{kvc::SessionInMemory::Alignment};
  auto* const at = static_cast<std::byte*>(::operator new(session.size() + 1, Alignment));
  if (!session.empty()) std::memcpy(at, session.data(), session.size());
  return {.bytes = {at, session.size()},
          .owner = std::shared_ptr<const void>(at, [at](const void*) { ::operator delete(at, Alignment); })};
}

/// Gives bytes to load(), at most `at_once` with every call.
class BytesSource {
 public:
  explicit BytesSource(std::span<const std::byte> bytes, std::size_t at_once = static_cast<std::size_t>(-1))
      : left_(bytes), at_once_(at_once) {}
  std::size_t operator()(std::span<std::byte> target) {
    const std::size_t count = std::min({target.size(), left_.size(), at_once_});
    if (count != 0) std::memcpy(target.data(), left_.data(), count);
    left_ = left_.subspan(count);
    return count;
  }
  std::size_t left() const { return left_.size(); }

 private:
  std::span<const std::byte> left_;
  std::size_t at_once_;
};

/// Returns how many bytes the session took.
inline std::size_t load_from(kvc::CacheCore& cache, std::span<const std::byte> bytes,
                             const kvc::SessionOptions& options = {}) {
  BytesSource source(bytes);
  return static_cast<std::size_t>(kvc::load(cache, source, options));
}

}  // namespace support
