#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "kvc/storage/row_store.hpp"
#include "support/sequence.hpp"

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

// f32 throughout, so that sealing a row again that was sealed before changes nothing but its last bits.
inline constexpr kvc::CacheOptions Exact{.dense = {kvc::Scalar::f32}, .arithmetic = kvc::Arithmetic::exact};
inline constexpr double Tolerance = 5e-4;

/// A cache and its model, which make every step together.
class NaivePair {
 public:
  NaivePair(const kvc::CacheShape& shape, const PolicyCase& entry)
      : entry_(&entry),
        cache_(new Cache(shape, entry.policy(), Exact)),
        model_(shape, streams_of(*cache_), dense_of(streams_of(*cache_))) {
    model_.keep = entry.keep;
    model_.select = entry.select;
    model_.farewell = entry.farewell;
    for (const auto& stage : cache_->stages())
      if (stage->verbs().merge) model_.merging = naive::Merging{};
    for (const auto& stage : cache_->stages()) model_.in_cache |= stage->positions() == kvc::Positions::in_cache;
  }
  NaivePair fork() const { return NaivePair(entry_, std::unique_ptr<Cache>(new Cache(cache_->fork())), model_); }

  const kvc::KVCache<kvc::AnyPolicy>& cache() const { return *cache_; }
  const naive::Cache& model() const { return model_; }
  const kvc::CacheShape& shape() const { return cache_->shape(); }
  std::size_t seen() const { return cache_->stats().seen; }
  kvc::Position next() const { return model_.next_position(0); }
  bool seals() const { return cache_->key_rows({0, 0}).seals() || cache_->value_rows({0, 0}).seals(); }

  void feed(const LayeredTokens::Slice& slice, kvc::Event event) {
    for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
      const kvc::Tokens tokens = slice.of(layer);
      Outputs out(shape(), slice.count);
      if (event == kvc::Event::decode)
        cache_->decode(layer, tokens, out.rows(0, slice.count));
      else
        cache_->prefill(layer, tokens, out.rows(0, slice.count), event == kvc::Event::prompt_end);
      if (event == kvc::Event::decode && model_.select) {  // every generated token selects by itself
        std::vector<double> expected;
        for (std::size_t t = 0; t < slice.count; ++t) {
          model_.append(layer, model_.one_of(tokens, t));
          const auto row = model_.attend_appended(layer, tokens.q.subrows(t, 1), event);
          expected.insert(expected.end(), row.begin(), row.end());
        }
        REQUIRE(naive::distance(out.values(), expected) < Tolerance);
      } else {
        model_.append(layer, tokens);
        REQUIRE(naive::distance(out.values(), model_.attend_appended(layer, tokens.q, event)) < Tolerance);
      }
      act(layer, event);
    }
  }
  void draft(const LayeredTokens::Slice& slice) {
    for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
      const kvc::Tokens tokens = slice.of(layer);
      Outputs out(shape(), slice.count);
      cache_->draft(layer, tokens, out.rows(0, slice.count));
      REQUIRE(naive::distance(out.values(), model_.draft(layer, tokens)) < Tolerance);
    }
  }
  void accept(std::size_t count) {
    cache_->accept(count);
    for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
      model_.accept(layer, count);
      if (count != 0) act(layer, kvc::Event::decode);
    }
  }
  void compress() {
    cache_->compress();
    for (std::uint32_t layer = 0; layer < shape().layers; ++layer) act(layer, kvc::Event::prompt_end);
  }
  void make_room(std::size_t tokens) {
    cache_->make_room(tokens);
    for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
      for (std::uint32_t head = 0; head < shape().kv_heads; ++head) follow({layer, head});
      model_.end_pass(layer, kvc::Event::make_room);
    }
  }
  void truncate(kvc::Position from) {
    // Which sealed rows are left dead where a group is cut is storage's own affair: modelled only where nothing is cut.
    NaivePair trial = fork();
    if (!trial.cache_->truncate(from) && seals()) return;
    static_cast<void>(cache_->truncate(from));
    model_.truncate(from);
    for (const kvc::HeadId id : Sequence::heads(shape()))
      REQUIRE(cache_->positions(id) == naive::positions_of(model_.head(id.layer, id.head)));
  }
  void attend(const LayeredTokens::Slice& slice) {
    const kvc::Tokens tokens = slice.of(1);
    Outputs out(shape(), 1);
    cache_->attend(1, tokens.q, out.rows(0, 1));
    std::vector<double> expected;
    for (std::size_t q = 0; q < shape().query_heads; ++q) {
      const naive::Head& head = model_.head(1, q / shape().group());
      const double shift = double(head.size()) - double(model_.next_position(1));
      const auto answer = model_.attend_one(head, model_.query(tokens.q[0], q), head.size(), shift);
      expected.insert(expected.end(), answer.out.begin(), answer.out.end());
    }
    REQUIRE(naive::distance(out.values(), expected) < Tolerance);
  }
  void check_rows() const {
    for (const kvc::HeadId id : Sequence::heads(shape())) {
      const naive::Head& head = model_.head(id.layer, id.head);
      std::vector<float> keys(head.size() * shape().head_dim), values(head.size() * shape().values_dim());
      cache_->gather(id, {keys.data(), head.size(), shape().head_dim},
                     {values.data(), head.size(), shape().values_dim()});
      std::vector<double> all_keys, all_values;
      for (const naive::Slot& slot : head) {
        all_keys.insert(all_keys.end(), slot.key.values.begin(), slot.key.values.end());
        all_values.insert(all_values.end(), slot.value.values.begin(), slot.value.values.end());
      }
      CHECK(naive::distance(keys, all_keys) < Tolerance);
      CHECK(naive::distance(values, all_values) < Tolerance);
    }
  }

 private:
  using Cache = kvc::KVCache<kvc::AnyPolicy>;

  NaivePair(const PolicyCase* entry, std::unique_ptr<Cache> cache, const naive::Cache& model)
      : entry_(entry), cache_(std::move(cache)), model_(model) {}

  static kvc::Streams streams_of(const Cache& cache) {
    for (const auto& stage : cache.stages())
      if (stage->verbs().quantize) return stage->quantize({}, {});
    return {};
  }
  static kvc::Scalar dense_of(const kvc::Streams& streams) {
    if (streams.key.format && std::holds_alternative<kvc::Dense>(*streams.key.format))
      return std::get<kvc::Dense>(*streams.key.format).type;
    return Exact.dense.type;
  }

  void act(std::uint32_t layer, kvc::Event event) {
    for (std::uint32_t head = 0; head < shape().kv_heads; ++head) {
      const kvc::HeadId id{layer, head};
      if (!entry_->keep) {
        follow(id);
        continue;
      }
      model_.evict(layer, head, entry_->keep(model_.head(layer, head), event));
      REQUIRE(cache_->positions(id) == naive::positions_of(model_.head(layer, head)));
    }
    model_.end_pass(layer, event);
  }
  /// Evicts what the library evicted.
  void follow(kvc::HeadId id) {
    const std::vector<kvc::Position> kept = cache_->positions(id);
    std::vector<bool> stays;
    for (const naive::Slot& slot : model_.head(id.layer, id.head))
      stays.push_back(std::binary_search(kept.begin(), kept.end(), slot.position));
    REQUIRE(std::size_t(std::count(stays.begin(), stays.end(), true)) == kept.size());
    model_.evict(id.layer, id.head, stays);
  }

  const PolicyCase* entry_;
  std::unique_ptr<Cache> cache_;
  naive::Cache model_;
};

}  // namespace support
