#pragma once
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI::session {

/// XXH64 with seed 0 (Yann Collet, github.com/Cyan4973/xxHash, doc/xxhash_spec.md) of bytes that come in pieces: about as fast as
/// memory is read, and other programs can compute it.
class Checksum {
 public:
  void add(std::span<const std::byte> bytes) {
    total_ += bytes.size();
    if (waiting_ != 0) {
      const std::size_t count = std::min(sizeof(rest_) - waiting_, bytes.size());
      std::memcpy(rest_ + waiting_, bytes.data(), count);
      waiting_ += count;
      bytes = bytes.subspan(count);
      if (waiting_ < sizeof(rest_)) return;
      add_stripes(rest_, 1);
      waiting_ = 0;
    }
    const std::size_t stripes = bytes.size() / sizeof(rest_);
    add_stripes(bytes.data(), stripes);
    bytes = bytes.subspan(stripes * sizeof(rest_));
    if (!bytes.empty()) std::memcpy(rest_, bytes.data(), bytes.size());
    waiting_ = bytes.size();
  }

  std::uint64_t value() const {
    std::uint64_t hash = Primes[4];
    if (total_ >= sizeof(rest_)) {
      hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) + std::rotl(lanes_[3], 18);
      for (const std::uint64_t lane : lanes_) hash = (hash ^ round(0, lane)) * Primes[0] + Primes[3];
    }
    hash += total_;
    const std::byte* at = rest_;
    std::size_t left = waiting_;
    for (; left >= 8; left -= 8, at += 8)
      hash = std::rotl(hash ^ round(0, read<std::uint64_t>(at)), 27) * Primes[0] + Primes[3];
    for (; left >= 4; left -= 4, at += 4)
      hash = std::rotl(hash ^ (read<std::uint32_t>(at) * Primes[0]), 23) * Primes[1] + Primes[2];
    for (; left > 0; --left, ++at)
      hash = std::rotl(hash ^ (std::to_integer<std::uint64_t>(*at) * Primes[4]), 11) * Primes[0];
    hash = (hash ^ (hash >> 33)) * Primes[1];
    hash = (hash ^ (hash >> 29)) * Primes[2];
    return hash ^ (hash >> 32);
  }

 private:
  static constexpr std::uint64_t Primes[] = {0x9E3779B185EBCA87u, 0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u,
                                             0x85EBCA77C2B2AE63u, 0x27D4EB2F165667C5u};

  template <class T>
  static T read(const std::byte* at) {
    T number;
    std::memcpy(&number, at, sizeof(T));
    return number;
  }
  static std::uint64_t round(std::uint64_t lane, std::uint64_t input) {
    return std::rotl(lane + input * Primes[1], 31) * Primes[0];
  }
  /// Stripes of 32 bytes, each lane eight of them.
  void add_stripes(const std::byte* at, std::size_t stripes) {
    std::uint64_t a = lanes_[0], b = lanes_[1], c = lanes_[2], d = lanes_[3];
    for (; stripes > 0; --stripes, at += 32) {
      a = round(a, read<std::uint64_t>(at));
      b = round(b, read<std::uint64_t>(at + 8));
      c = round(c, read<std::uint64_t>(at + 16));
      d = round(d, read<std::uint64_t>(at + 24));
    }
    lanes_[0] = a;
    lanes_[1] = b;
    lanes_[2] = c;
    lanes_[3] = d;
  }

  std::uint64_t lanes_[4] = {Primes[0] + Primes[1], Primes[1], 0, 0 - Primes[0]};
  std::uint64_t total_ = 0;
  std::byte rest_[32] = {};
  std::size_t waiting_ = 0;  // bytes of rest_
};

}  // namespace kvc::inline KVC_ABI::session
