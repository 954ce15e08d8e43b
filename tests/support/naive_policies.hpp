#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "support/naive_cache.hpp"

/// What the policies choose, in the plainest form: the naive cache's Keep and Select. Parameters are those of the
/// library's policies at their defaults unless an argument says otherwise.
namespace naive {

using Keep = Cache::Keep;
using kvc::Event;

std::vector<bool> everything(const Head& head);
std::vector<bool> newest(const Head& head, std::size_t count);

/// Slots marked true stay whatever their score; of the others the best, up to `budget` in all; the older of equals.
std::vector<bool> best(std::vector<bool> stays, const std::vector<double>& scores, std::size_t budget);

/// StreamingLLM: four sinks and a window.
Keep streaming(std::size_t budget);

/// H2O: half of the budget for the most attention, half for the newest.
Keep heavy_hitters(std::size_t budget);

/// Knorm: the lowest norms, once after a prompt.
Keep lowest_norms(std::size_t budget);

/// ExternalScores: the engine's highest, once after a prompt or after generated tokens too.
Keep engine_scores(std::size_t budget, std::size_t recent = 0, bool decoding = false);

/// SnapKV: attention of the prompt's last `window` tokens, pooled over `kernel` tokens.
Keep votes(std::size_t budget, std::size_t window, std::size_t kernel = 5);

/// Quest: the newest page and those with the highest bound on any logit of the group's queries.
Cache::Select best_pages(std::size_t tokens, std::size_t page, std::size_t dense_layers);

/// RazorAttention: slots that go join the mean at slot `sinks`, which stands for them all and is computed from the rows as they
/// were when they went.
Cache::Farewell compensating(std::size_t sinks);

std::vector<kvc::Position> positions_of(const Head& head);

}  // namespace naive
