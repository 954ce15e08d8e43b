#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <vector>

#include "kvc/format.hpp"
#include "kvc/half.hpp"
#include "kvc/stream.hpp"

/// The storage rules of the architecture in the plainest form: a vector of rows, in double precision.
namespace naive {

using Row = std::vector<double>;

double rounded(kvc::Scalar type, double value);

/// What a group of numbers reads as after GroupQuant: nearest code against the minimum and scale as stored. Codes are
/// found in single precision, as the format says; a tie in double precision would be a different code.
Row quantized(const Row& group, unsigned bits, kvc::Scalar metadata);

/// Quantizes rows that are sealed together: groups of consecutive tokens of a channel, or of channels of a token.
void quantize_together(std::vector<Row*> rows, const kvc::GroupQuant& format);

/// One slot's row in a stream: the values as they read, and the block that it was sealed in; 0: dense.
struct Stored {
  Row values;
  std::size_t block = 0;
  bool sealed() const { return block != 0; }
};

/// Blocks of sealed rows, oldest first: what decides when the few rows left in one become dense again.
class Blocks {
 public:
  /// A block for up to `wanted` rows; sets how many it takes. Rows that share scales get a block of their own, others
  /// share blocks of 64.
  std::size_t take(std::size_t wanted, bool shares_scales, std::size_t& taken);
  /// A block of `rows` directions that another layer reads too.
  std::size_t share(std::size_t rows);
  /// After an eviction: what is left of blocks that are three quarters dead is dense.
  void release(const std::vector<Stored*>& slots);
  /// After slots left a window: only whole blocks go.
  void forget_dead(const std::vector<Stored*>& slots);

  struct Block {
    std::size_t name, capacity, rows;
    bool shared = false;
  };
  const std::vector<Block>& all() const { return blocks_; }

 private:
  std::vector<Block> blocks_;
  std::size_t last_ = 0;
};

/// A stream's rule on rows in slot order: the oldest dense ones beyond the sinks are sealed, `batch` at a time, the newest
/// `recent` slots excepted. At the end of a prompt, Stream::whole_prompt seals the last ones too.
void seal_oldest(const std::vector<Stored*>& slots, const kvc::Stream& stream, Blocks& blocks, bool prompt_end);

}  // namespace naive
