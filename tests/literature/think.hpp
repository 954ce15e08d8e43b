#pragma once
#include <memory>
#include <numeric>

#include "kvc/codec/dense.hpp"
#include "kvc/policy/policy.hpp"

namespace literature {
using namespace kvc;

/// Keys of which only some channels are stored, in half precision; the others read as 0. A query leaves them out once
/// per call.
class ChannelCodec final : public Codec {
 public:
  ChannelCodec(std::size_t dim, std::vector<std::size_t> channels)
      : dim_(dim), channels_(std::move(channels)), stored_({Scalar::f16}, Role::key, channels_.size()) {}
  std::string name() const override { return "f16-" + std::to_string(channels_.size()) + "-channels"; }
  std::size_t dim() const override { return dim_; }
  std::size_t block_bytes(std::size_t capacity) const override { return stored_.block_bytes(capacity); }
  std::size_t range_granule() const override { return stored_.range_granule(); }
  std::size_t own_bytes() const override { return channels_.size() * sizeof(std::size_t); }
  float limit() const override { return stored_.limit(); }

  void encode(ConstRows rows, std::byte* block, std::size_t capacity, std::size_t first) const override {
    std::vector<float> chosen(rows.count * channels_.size());
    prepare(rows, {chosen.data(), rows.count, channels_.size()});
    stored_.encode({chosen.data(), rows.count, channels_.size()}, block, capacity, first);
  }
  void decode(const std::byte* block, std::size_t capacity, std::size_t first, Rows<float> rows) const override {
    std::vector<float> chosen(rows.count * channels_.size());
    stored_.decode(block, capacity, first, {chosen.data(), rows.count, channels_.size()});
    for (std::size_t r = 0; r < rows.count; ++r) {
      std::ranges::fill(rows[r], 0.0f);
      for (std::size_t i = 0; i < channels_.size(); ++i) rows[r][channels_[i]] = chosen[r * channels_.size() + i];
    }
  }
  std::size_t prepared_dim() const override { return channels_.size(); }
  void prepare(ConstRows queries, Rows<float> prepared) const override {
    for (std::size_t r = 0; r < queries.count; ++r)
      for (std::size_t i = 0; i < channels_.size(); ++i) prepared[r][i] = queries[r][channels_[i]];
  }
  void scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
              const kernels::Coefficients& queries, const kernels::Results& results) const override {
    stored_.scores(block, capacity, first, count, queries, results);
  }

 private:
  std::size_t dim_;
  std::vector<std::size_t> channels_;  ///< ascending
  DenseCodec stored_;
};

/// ThinK (Xu et al., "ThinK: Thinner Key Cache by Query-Driven Pruning", arXiv 2407.21018): when a prompt ends, the key
/// channels that matter least to its last queries are left out of its keys. Keys of generated tokens keep all channels,
/// as in kvpress's ThinKPress.
struct ThinK {
  double pruned = 0.4;
  std::size_t window = 32, recent = 0;

  static constexpr PolicyName name{"think", "Leaves out the key channels that matter least to the last queries."};
  static constexpr auto parameters() {
    return list(parameter("pruned", &ThinK::pruned, "The share of the channels that is left out."),
                parameter("window", &ThinK::window, "So many newest queries of the prompt decide."),
                parameter("recent", &ThinK::recent, "So many newest tokens of the prompt keep all channels."));
  }
  Needs needs() const { return {.query_window = window}; }

  /// All channels, until the head seals for the first time.
  Streams quantize(HeadId, const CacheShape& shape) const {
    std::vector<std::size_t> all(shape.head_dim);
    std::iota(all.begin(), all.end(), std::size_t{0});
    return storing(shape, std::move(all));
  }
  Streams fit(const Head<ThinK>& head) const {
    const ConstRows keys = head.keys(), queries = head.window_queries(window);
    if (queries.count == 0) fail(ErrorCode::missing_feed, "ThinK: there is no open prompt whose queries could decide");
    std::vector<std::size_t> order(keys.dim);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::vector<double> scores(keys.dim);
    for (const std::size_t c : order) scores[c] = energy(queries, c) * energy(keys, c);
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return scores[a] < scores[b]; });
    order.erase(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(pruned * double(keys.dim)));
    std::ranges::sort(order);
    return storing(*head.shape, std::move(order));
  }
  void validate(const CacheShape&) const {
    require_share("ThinK: pruned", pruned);
    require_between("ThinK: window", window, 1);
  }

 private:
  static double energy(ConstRows rows, std::size_t channel) {
    double sum = 0;
    for (std::size_t r = 0; r < rows.count; ++r) sum += double(rows[r][channel]) * double(rows[r][channel]);
    return sum;
  }
  Streams storing(const CacheShape& shape, std::vector<std::size_t> channels) const {
    const auto codec = std::make_shared<const ChannelCodec>(shape.head_dim, std::move(channels));
    return {.key = {.format = codec, .recent = recent, .prompt_only = true}, .value = {}};
  }
};

}  // namespace literature
