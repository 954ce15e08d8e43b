#pragma once
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "kvc/abi.hpp"

namespace kvc::inline KVC_ABI::session {

/// A number of 64 bits that finds accidents in bytes that come in pieces; it does not protect against somebody who means it.
///
/// Bytes are read as little-endian words, in turn for eight lanes; after the last one come zeros until all lanes had as many. A
/// lane becomes rotl((lane ^ word) * Factor, 29). So a single wrong word always makes its lane another one, and with one product
/// for eight bytes and eight of them at once the processor reads no slower than it copies. In the end, the number of bytes and
/// then every lane are taken into one word in the same way, whose halves are mixed.
class Checksum {
 public:
  void add(std::span<const std::byte> bytes) {
    total_ += bytes.size();
    if (waiting_ != 0) {
      const std::size_t count = std::min(Stripe - waiting_, bytes.size());
      std::memcpy(rest_ + waiting_, bytes.data(), count);
      waiting_ += count;
      bytes = bytes.subspan(count);
      if (waiting_ < Stripe) return;
      add_stripes(rest_, 1);
      waiting_ = 0;
    }
    const std::size_t stripes = bytes.size() / Stripe;
    add_stripes(bytes.data(), stripes);
    bytes = bytes.subspan(stripes * Stripe);
    if (!bytes.empty()) std::memcpy(rest_, bytes.data(), bytes.size());
    waiting_ = bytes.size();
  }

  std::uint64_t value() const {
    Checksum whole(*this);
    if (waiting_ != 0) {
      std::memset(whole.rest_ + waiting_, 0, Stripe - waiting_);
      whole.add_stripes(whole.rest_, 1);
    }
    std::uint64_t sum = next(0, total_);
    for (const std::uint64_t lane : whole.lanes_) sum = next(sum, lane);
    sum = (sum ^ (sum >> 32)) * Factor;
    return sum ^ (sum >> 29);
  }

 private:
  static constexpr std::uint64_t Factor = 0x9E3779B185EBCA87u;  // odd, so that no word is lost
  static constexpr std::size_t Stripe = 64;

  static std::uint64_t next(std::uint64_t lane, std::uint64_t word) { return std::rotl((lane ^ word) * Factor, 29); }
  static std::uint64_t word(const std::byte* at) {
    std::uint64_t number;
    std::memcpy(&number, at, sizeof(number));
    return number;
  }
  void add_stripes(const std::byte* at, std::size_t stripes) {
    // Written out, so that every compiler keeps the lanes in registers.
    std::uint64_t a = lanes_[0], b = lanes_[1], c = lanes_[2], d = lanes_[3], e = lanes_[4], f = lanes_[5],
                  g = lanes_[6], h = lanes_[7];
    for (; stripes > 0; --stripes, at += Stripe) {
      a = next(a, word(at));
      b = next(b, word(at + 8));
      c = next(c, word(at + 16));
      d = next(d, word(at + 24));
      e = next(e, word(at + 32));
      f = next(f, word(at + 40));
      g = next(g, word(at + 48));
      h = next(h, word(at + 56));
    }
    const std::uint64_t lanes[] = {a, b, c, d, e, f, g, h};
    std::copy_n(lanes, 8, lanes_);
  }

  std::uint64_t lanes_[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  std::uint64_t total_ = 0;
  std::byte rest_[Stripe] = {};
  std::size_t waiting_ = 0;  // bytes of rest_
};

}  // namespace kvc::inline KVC_ABI::session
