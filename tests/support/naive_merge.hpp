#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <variant>
#include <vector>

#include "kvc/shape.hpp"
#include "support/naive_rows.hpp"

/// Slots of the naive cache, and MiniCache's merging of two layers' in the plainest form.
namespace naive {

struct Slot {
  kvc::Position position = 0;
  Stored key = {}, value = {};
  kvc::Position turn = 0;  ///< how far the key is to be turned: it was rotated for `position - turn`
  double multiplicity = 1;
  Row key_sum = {}, value_sum = {};  ///< of the tokens that it stands for, if it is a mean
  double mass = 0;                   ///< attention received in all passes, summed over query heads
  float score = 0;                   ///< what the engine said about it
  Row received = {};  ///< attention from each token of the prompt that is being read, summed over query heads
};
using Head = std::vector<Slot>;

/// MiniCache's parameters: where directions lie between two layers, and which tokens are so far apart that they stay.
struct Merging {
  double t = 0.6, gamma = 0.05;
};

double product(const Row& a, const Row& b);
double angle(const Row& a, const Row& b);

/// Gives the slots from `first` on of two layers one direction each and the norms they had, unless they are retained. What
/// fills groups of the stream's format is quantized, 256 rows at most at once; the few rows left lie dense.
void merge_rows(Head& below, Head& here, std::size_t first, Stored Slot::*side, const kvc::Stream& stream,
                const Merging& merging, Blocks& below_blocks, Blocks& here_blocks);

}  // namespace naive
