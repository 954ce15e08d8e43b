#pragma once
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <vector>

#include "support/naive_cache.hpp"
#include "support/sanitized.hpp"
#include "support/sequence.hpp"

namespace support {

// f32 throughout, so that sealing a row again that was sealed before changes nothing but its last bits.
inline constexpr kvc::CacheOptions Exact{.dense = {kvc::Scalar::f32}, .arithmetic = kvc::Arithmetic::exact};
inline constexpr double Tolerance = 5e-4;

/// Thrown where a cache and its model differ. It is no assertion of a test framework, so that programs without one (tests/fuzz)
/// can use the pair.
struct Mismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A cache and its model, which make every step together. Every step throws Mismatch where outputs, positions or rows differ.
class NaivePair {
 public:
  NaivePair(const kvc::CacheShape& shape, const PolicyCase& entry);
  NaivePair fork() const { return NaivePair(entry_, std::unique_ptr<Cache>(new Cache(cache_->fork())), model_); }

  const kvc::KVCache<kvc::AnyPolicy>& cache() const { return *cache_; }
  const naive::Cache& model() const { return model_; }
  const kvc::CacheShape& shape() const { return cache_->shape(); }
  std::size_t seen() const { return cache_->stats().seen; }
  kvc::Position next() const { return model_.next_position(0); }
  bool seals() const;

  void feed(const LayeredTokens::Slice& slice, kvc::Event event);
  void draft(const LayeredTokens::Slice& slice);
  void accept(std::size_t count);
  void compress();
  void make_room(std::size_t tokens);
  void truncate(kvc::Position from);
  void remove(kvc::Position first, kvc::Position last);
  /// Moves tokens where they have room; elsewhere the cache must refuse it.
  void shift(kvc::Position first, kvc::Position last, kvc::Position delta);
  void attend(const LayeredTokens::Slice& slice);
  /// Queries that leave nothing behind. Not for policies that observe probes: the model does not.
  void probe(const LayeredTokens::Slice& slice);
  void clear();
  /// A new cache takes the cache's place, which was loaded from a session of it. Nothing while the cache cannot be saved.
  void save_and_load();
  /// Compares the rows of every head.
  void check_rows() const;

 private:
  using Cache = kvc::KVCache<kvc::AnyPolicy>;

  NaivePair(const PolicyCase* entry, std::unique_ptr<Cache> cache, const naive::Cache& model)
      : entry_(entry), cache_(std::move(cache)), model_(model) {}

  naive::Cache new_model() const;
  /// Appends to the model. Every generated token selects by itself.
  std::vector<double> answers_of_model(std::size_t layer, const kvc::Tokens& tokens, kvc::Event event);
  /// Lets the model evict by its own choice, which must be the library's, or where it has none what the library evicted.
  void act(std::uint32_t layer, kvc::Event event);
  void follow(kvc::HeadId id);
  void check_positions(kvc::HeadId id) const;

  const PolicyCase* entry_;
  std::unique_ptr<Cache> cache_;
  naive::Cache model_;
};

}  // namespace support
