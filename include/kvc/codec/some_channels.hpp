#pragma once
#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "kvc/codec/dense.hpp"

namespace kvc::inline KVC_ABI {

/// Keys of which only some channels are stored, in half precision; the others read as 0. A query leaves them out once per call
/// of attention, so that products are of the stored channels alone.
class SomeChannelsCodec final : public Codec {
 public:
  /// Throws Error for values, without channels, and for channels that are not ascending below `dim`.
  SomeChannelsCodec(const SomeChannels& format, Role role, std::size_t dim)
      : dim_(dim), kept_(format.kept), stored_({Scalar::f16}, Role::key, kept_.size()) {
    if (role != Role::key) fail(ErrorCode::invalid_argument, "SomeChannels: values need all their channels");
    if (kept_.empty() || kept_.back() >= dim || !std::ranges::is_sorted(kept_, std::ranges::less_equal{}))
      fail(ErrorCode::invalid_argument,
           {"SomeChannels: there must be at least one channel, and they must ascend below ", dim});
  }

  std::string name() const override { return joined({"f16 in ", kept_.size(), " channels"}); }
  std::size_t dim() const override { return dim_; }
  std::size_t block_bytes(std::size_t capacity) const override { return stored_.block_bytes(capacity); }
  std::size_t range_granule() const override { return stored_.range_granule(); }
  std::size_t own_bytes() const override { return kept_.size() * sizeof(std::size_t); }
  float limit() const override { return stored_.limit(); }

  void encode(ConstRows rows, std::byte* block, std::size_t capacity, std::size_t first) const override {
    std::vector<float> chosen(rows.count * kept_.size());
    prepare(rows, {chosen.data(), rows.count, kept_.size()});
    stored_.encode({chosen.data(), rows.count, kept_.size()}, block, capacity, first);
  }
  void decode(const std::byte* block, std::size_t capacity, std::size_t first, Rows<float> rows) const override {
    std::vector<float> chosen(rows.count * kept_.size());
    stored_.decode(block, capacity, first, {chosen.data(), rows.count, kept_.size()});
    for (std::size_t r = 0; r < rows.count; ++r) {
      std::ranges::fill(rows[r], 0.0f);
      for (std::size_t i = 0; i < kept_.size(); ++i) rows[r][kept_[i]] = chosen[r * kept_.size() + i];
    }
  }

  std::size_t prepared_dim() const override { return kept_.size(); }
  void prepare(ConstRows queries, Rows<float> prepared) const override {
    for (std::size_t r = 0; r < queries.count; ++r)
      for (std::size_t i = 0; i < kept_.size(); ++i) prepared[r][i] = queries[r][kept_[i]];
  }
  void scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
              const kernels::Coefficients& queries, const kernels::Results& results) const override {
    stored_.scores(block, capacity, first, count, queries, results);
  }

 private:
  std::size_t dim_;
  std::vector<std::size_t> kept_;
  DenseCodec stored_;
};

}  // namespace kvc::inline KVC_ABI
