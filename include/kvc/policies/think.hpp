#pragma once
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include "kvc/codec/make.hpp"
#include "kvc/policy/policy.hpp"

namespace kvc::inline KVC_ABI {

/// ThinK (Xu et al., "ThinK: Thinner Key Cache by Query-Driven Pruning", arXiv 2407.21018): when a prompt ends, the key channels
/// that matter least to its last queries are left out of its keys: of every head those with the least energy of the queries
/// times energy of the keys. Authors' code: SalesforceAIResearch/ThinK, whose newest 32 tokens keep all channels
/// (`.recent = 32`); with 0 it is kvpress's ThinKPress, which zeroes channels where this one does not store them. Values stay
/// whole, and so do the keys of generated tokens until another prompt ends. What is stored of a key is stored in half precision,
/// also in a cache of f32. A head's channels are chosen once. It follows
/// policies that evict tokens: `SnapKV{} | ThinK{}`.
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
    return storing(std::move(all));
  }
  /// The channels that matter. Throws Error(missing_feed) where a prompt's queries are gone.
  Streams fit(const Head<ThinK>& head) const {
    const ConstRows keys = head.keys(), queries = head.window_queries(window);
    if (queries.count == 0) fail(ErrorCode::missing_feed, "ThinK: there is no open prompt whose queries could decide");
    std::vector<double> scores = energies(queries);
    const std::vector<double> others = energies(keys);
    for (std::size_t c = 0; c < scores.size(); ++c) scores[c] *= others[c];
    std::vector<std::size_t> kept;
    for (std::size_t c = 0; c < scores.size(); ++c) {
      std::size_t before = 0;  // channels that are left out before this one
      for (std::size_t other = 0; other < scores.size(); ++other)
        before += scores[other] < scores[c] || (scores[other] == scores[c] && other < c);
      if (before >= left_out(keys.dim)) kept.push_back(c);
    }
    return storing(std::move(kept));
  }

  /// Throws Error unless some channels stay and some queries decide.
  void validate(const CacheShape& shape) const {
    require_share("ThinK: pruned", pruned);
    require_between("ThinK: window", window, 1);
    require_between("ThinK: recent", recent, 0);
    if (left_out(shape.head_dim) >= shape.head_dim)
      fail(ErrorCode::invalid_argument, {"ThinK: pruned must leave at least one channel, got ", pruned});
  }

 private:
  std::size_t left_out(std::size_t dim) const { return static_cast<std::size_t>(pruned * double(dim)); }

  /// The sum of squares of each channel.
  static std::vector<double> energies(ConstRows rows) {
    std::vector<double> sums(rows.dim);
    for (std::size_t r = 0; r < rows.count; ++r)
      for (std::size_t c = 0; c < rows.dim; ++c) sums[c] += double(rows[r][c]) * double(rows[r][c]);
    return sums;
  }
  Streams storing(std::vector<std::size_t> channels) const {
    return {.key = {.format = SomeChannels{std::move(channels)}, .recent = recent, .prompt_only = true}, .value = {}};
  }
};

}  // namespace kvc::inline KVC_ABI
