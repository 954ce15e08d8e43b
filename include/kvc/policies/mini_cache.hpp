#pragma once
#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>
#include <system_error>

#include "kvc/policy/policy.hpp"
#include "kvc/policy/slerp.hpp"

namespace kvc::inline KVC_ABI {

/// Two adjacent layers that share directions.
struct LayerPair {
  std::size_t below = 0, above = 0;
  friend bool operator==(const LayerPair&, const LayerPair&) = default;

  static constexpr const char* Expected = "pairs of layers, as in 15-16+17-18";
  std::string to_string() const { return joined({below, "-", above}); }
  /// The pair that a text such as "15-16" names.
  static std::optional<LayerPair> parse(std::string_view text) {
    LayerPair pair;
    const char* const end = text.data() + text.size();
    const auto [dash, error] = std::from_chars(text.data(), end, pair.below);
    if (error != std::errc{} || dash == end || *dash != '-') return std::nullopt;
    const auto [stop, second] = std::from_chars(dash + 1, end, pair.above);
    return second == std::errc{} && stop == end ? std::optional(pair) : std::nullopt;
  }
};

/// MiniCache (Liu et al., "MiniCache: KV Cache Compression in Depth Dimension for Large Language Models", arXiv
/// 2405.14366): from a start layer on, the layers (S, S+1), (S+2, S+3), … hold one direction per token and KV head,
/// interpolated between those of both layers (SLERP), and a norm for each layer; an odd last layer stays alone. Keys and
/// values are merged apart, with norms and retained tokens of their own. Attention reads the shared directions.
///
/// The authors never published code. What this follows: the formulas as third parties state and run them
/// (KVCache-Factory, pyramidkv/minicache.py: direction, norms, restoration; its fixed share is Retention::count).
/// * The printed rule of retention, d < d_min + gamma * (d_max - d_min), keeps the most *similar* pairs, while the text
///   means to keep the most distinct ones. The default is what the text means (Retention::far); Retention::literal is
///   what is printed.
/// * Distances are per KV head, as in the third-party code; the paper leaves it open.
/// * Keys and values retain tokens of their own, as in the paper's figure; their rows then lie in different orders, and
///   attention over a pair takes longer than with Retention::none.
/// * Norms are floats; a retained token costs its rows in both layers, and the first one a row number for every token.
///
/// A prompt is merged when it ends, whole: d_min and d_max are over all its tokens. While decoding, tokens are merged 64
/// at a time, so the last 0 to 63 are still exact, and d_min and d_max are those of the 64: unless all distances are
/// equal or gamma is 0, at least one token of every 64 is retained, of keys and of values each.
///
/// Composed with a quantizer, directions are sealed in its format as they are merged, whatever number of recent tokens it
/// spares; retained tokens are sealed by its own rule.
///
/// It needs a model whose adjacent layers resemble each other head by head, and refuses none. SmolLM2-135M's do not (mean
/// cosine of keys -0.01): there perplexity rises to 2.05 times that of the full cache on Emma, to 2.75 times on Emma and
/// Wikitext. kvc/analysis/layer_similarity.hpp, or `analyze layers`, tells before, and chooses pairs.
struct MiniCache {
  double t = 0.6;
  double start = 0.5;
  std::vector<LayerPair> chosen = {};
  Retention retention = Retention::far;
  double gamma = 0.05;
  double ratio = 0.05;

  static constexpr PolicyName name{"mini_cache", "Lets adjacent layers share the directions of their keys and values."};
  static constexpr auto parameters() {
    return list(
        parameter("t", &MiniCache::t,
                  "Where a shared direction lies between that of the lower layer (0) and the upper (1)."),
        parameter("start", &MiniCache::start, "The depth of the first pair of layers, as a share of all layers."),
        parameter("pairs", &MiniCache::chosen, "The pairs of layers to merge, instead of all from start on."),
        parameter("retention", &MiniCache::retention, "Which tokens stay as they are."),
        parameter("gamma", &MiniCache::gamma,
                  "With far and literal: the share of the range of distances whose tokens stay as they are."),
        parameter("ratio", &MiniCache::ratio, "With count: the share of the tokens that stay as they are."));
  }

  /// Whether `layer` is the upper one of a pair.
  bool pairs(std::size_t layer, const CacheShape& shape) const {
    if (!chosen.empty())
      return std::any_of(chosen.begin(), chosen.end(), [&](const LayerPair& pair) { return pair.above == layer; });
    const std::size_t first = first_layer(shape);
    return layer > first && (layer - first) % 2 == 1;
  }

  void merge(const Head<MiniCache>& below, const Head<MiniCache>& here, PairPlan& plan) const {
    const std::size_t first = plan.first();
    if (first >= here.size()) return;
    merge_rows(below.keys_from(first), here.keys_from(first), [&](std::size_t i, auto direction, const RowPair& pair) {
      plan.share_key(first + i, direction, float(pair.norm_below), float(pair.norm_here));
    });
    merge_rows(below.values_from(first), here.values_from(first),
               [&](std::size_t i, auto direction, const RowPair& pair) {
                 plan.share_value(first + i, direction, float(pair.norm_below), float(pair.norm_here));
               });
  }

  /// Throws Error unless t, start, gamma and ratio lie in [0, 1] and the chosen pairs are adjacent layers of the model,
  /// each in one pair at most.
  void validate(const CacheShape& shape) const {
    require_share("MiniCache: t", t);
    require_share("MiniCache: start", start);
    require_share("MiniCache: gamma", gamma);
    require_share("MiniCache: ratio", ratio);
    std::vector<bool> taken(shape.layers);
    for (const LayerPair& pair : chosen) {
      if (pair.above == 0 || pair.below != pair.above - 1)
        fail(ErrorCode::invalid_argument,
             {"MiniCache: pair ", pair.to_string(), " is not two adjacent layers, the lower one first"});
      if (pair.above >= shape.layers)
        fail(ErrorCode::invalid_argument,
             {"MiniCache: pair ", pair.to_string(), " is beyond the model's last layer, ", shape.layers - 1});
      if (taken[pair.below] || taken[pair.above])
        fail(ErrorCode::invalid_argument, {"MiniCache: pair ", pair.to_string(), " shares a layer with another pair"});
      taken[pair.below] = taken[pair.above] = true;
    }
  }

 private:
  std::size_t first_layer(const CacheShape& shape) const {
    constexpr double Rounding = 1e-9;  // 0.29 * 100 is a little less than 29
    return static_cast<std::size_t>(start * static_cast<double>(shape.layers) + Rounding);
  }

  /// Calls share(index, direction, norms) for every pair of rows that is not retained.
  template <class Share>
  void merge_rows(ConstRows below, ConstRows here, Share share) const {
    std::vector<RowPair> rows(here.count);
    std::vector<double> distances(here.count);
    for (std::size_t i = 0; i < here.count; ++i) {
      rows[i] = compare_rows(below[i], here[i]);
      distances[i] = rows[i].distance();
    }
    const std::vector<std::uint8_t> retained = choose_retained(distances, retention, gamma, ratio);
    std::vector<float> direction(here.dim);
    for (std::size_t i = 0; i < here.count; ++i) {
      // A row whose norm no float holds stays as it is.
      if (retained[i] || std::max(rows[i].norm_below, rows[i].norm_here) > std::numeric_limits<float>::max()) continue;
      slerp(below[i], here[i], rows[i], t, direction);
      share(i, std::span<const float>(direction), rows[i]);
    }
  }
};

}  // namespace kvc::inline KVC_ABI
