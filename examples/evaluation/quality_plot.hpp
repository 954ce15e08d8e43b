#pragma once
#include <string>

#include "results.hpp"

namespace evaluation {

/// What a policy does to a cache, by what was measured: it keeps fewer tokens, fewer bits, or both.
enum class Kind : std::uint8_t { full, evict, quantize, both, other };

Kind kind_of(const Result& result);
/// The CSS class of plot_style().
const char* name_of(Kind kind);
/// For a legend.
const char* words_of(Kind kind);

enum class Quality : std::uint8_t { divergence, perplexity };

struct PlotOptions {
  Quality quality = Quality::divergence;
  bool narrow = false;      ///< for the width of a phone: labels only along the Pareto front
  bool standalone = false;  ///< a file of its own: it brings its background, its style and a title
};

/// Quality against bytes: a point for every policy and keep fraction, a line through those of one policy, and the Pareto
/// front, along which nothing is both smaller and better.
std::string quality_plot(const PromptResults& length, const Protocol& protocol, const PlotOptions& options);

/// Indexes of the results that no other result beats in both bytes and quality, from the largest to the smallest. Results
/// without windows are not among them.
std::vector<std::size_t> pareto_front(const std::vector<Result>& results, Quality quality);

/// The number of a policy among those of its kind, in the order of the results: it chooses the marker's shape.
std::size_t shape_of(const std::vector<Result>& results, std::size_t index);

}  // namespace evaluation
