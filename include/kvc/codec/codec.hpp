#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>

#include "kvc/codec/decoded_product.hpp"
#include "kvc/format.hpp"
#include "kvc/kernels/table.hpp"
#include "kvc/shape.hpp"
#include "kvc/views.hpp"

namespace kvc::inline KVC_ABI {

/// How a block of rows is laid out in bytes, with the kernels that read it: a value, chosen per head and for keys and values
/// apart. A user's own codec needs name, dim, block_bytes, encode and decode; scores and accumulate then decode a few rows
/// at a time and run the dense kernels on them.
/// A block has room for `capacity` rows; every call says which of them it means. Codecs are immutable and thread-safe.
/// They run in the middle of attention: one that uses AMX tiles itself must leave the thread's tile configuration as it was.
///
/// What a codec may do besides:
///   * know positions: encode_at() is told where its tokens stand, so that keys can be stored without their rotation;
///   * work in another basis: attention calls prepare() with its queries once, scores() with what that wrote for every
///     block, accumulate() for every block, and finish() with the sums once. A rotated or low-rank codec transforms
///     queries and sums in these two, never rows;
///   * fit itself to a head: fit() sees the rows that the head seals first and returns the codec that seals them.
class Codec {
 public:
  virtual ~Codec() = default;
  virtual std::string name() const = 0;
  /// Floats of a row.
  virtual std::size_t dim() const = 0;
  /// Bytes of a block with room for `capacity` rows: codes, scales, everything.
  virtual std::size_t block_bytes(std::size_t capacity) const = 0;
  /// Rows are encoded in multiples of this: 1, or the tokens that share a scale.
  virtual std::size_t granule() const { return 1; }
  /// Ranges that scores and accumulate are asked for begin on multiples of this.
  virtual std::size_t range_granule() const { return granule(); }
  /// Largest magnitude of an element of a row that is read back finite. A cache refuses rows beyond it.
  virtual float limit() const { return std::numeric_limits<float>::infinity(); }
  /// Bytes that the codec itself holds for its head, such as a basis that fit() found; they count as metadata.
  virtual std::size_t own_bytes() const { return 0; }

  /// Writes rows [first, first + rows.count) of a block; first and count are multiples of granule().
  virtual void encode(ConstRows rows, std::byte* block, std::size_t capacity, std::size_t first) const = 0;
  /// The same for tokens that stand at `positions` in the text: what the cache calls. Keys come with their rotary embedding.
  virtual void encode_at(ConstRows rows, std::span<const Position> positions, std::byte* block, std::size_t capacity,
                         std::size_t first) const {
    static_cast<void>(positions);
    encode(rows, block, capacity, first);
  }
  /// Reads rows [first, first + rows.count) back, as they were given to encode.
  virtual void decode(const std::byte* block, std::size_t capacity, std::size_t first, Rows<float> rows) const = 0;

  /// Floats of a prepared query; 0: scores() takes queries as they are, and prepare() is not called.
  virtual std::size_t prepared_dim() const { return 0; }
  /// Writes prepared [count, prepared_dim()] for queries [count, dim()]: once per call of attention and head.
  virtual void prepare(ConstRows queries, Rows<float> prepared) const {
    static_cast<void>(queries);
    static_cast<void>(prepared);
  }
  /// results[i][r] (+)= queries[i] · row(first + r) for r < count. Queries are prepared, if prepared_dim() is not 0: such a
  /// codec must override this, or Error(incompatible) says so.
  virtual void scores(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                      const kernels::Coefficients& queries, const kernels::Results& results) const {
    if (prepared_dim() != 0) fail_without("prepared_dim()", "scores()");
    with_decoded(block, capacity, first,
                 [&](const detail::DecodedProduct& product) { product.scores(count, queries, results); });
  }

  /// Floats of a sum; 0: accumulate() adds up rows themselves, and finish() is not called.
  virtual std::size_t sum_dim() const { return 0; }
  /// results[i] (+)= sum over r < count of weights[i][r] * row(first + r), or sums of sum_dim() floats that finish() turns
  /// into it: such a codec must override this, or Error(incompatible) says so.
  virtual void accumulate(const std::byte* block, std::size_t capacity, std::size_t first, std::size_t count,
                          const kernels::Coefficients& weights, const kernels::Results& results) const {
    if (sum_dim() != 0) fail_without("sum_dim()", "accumulate()");
    with_decoded(block, capacity, first,
                 [&](const detail::DecodedProduct& product) { product.accumulate(count, weights, results); });
  }
  /// Adds to out [count, dim()] the rows that sums [count, sum_dim()] stand for: once per call of attention and head.
  virtual void finish(ConstRows sums, Rows<float> out) const {
    static_cast<void>(sums);
    static_cast<void>(out);
  }

  /// The codec that takes this one's place for one head, fitted to the rows that the head seals first and their positions;
  /// null: this one stays. Asked once per head, until the cache is cleared. The new codec encodes rows of the same dim().
  virtual std::shared_ptr<const Codec> fit(ConstRows rows, std::span<const Position> positions) const {
    static_cast<void>(rows);
    static_cast<void>(positions);
    return nullptr;
  }

  /// The codec of the same format for a block of `rows` rows that will never hold more, where this one would waste bytes or
  /// cannot encode so many, because they are no multiple of its granule (see Stream::whole_prompt). Null: there is no other codec.
  virtual std::shared_ptr<const Codec> of_rows(std::size_t rows) const {
    static_cast<void>(rows);
    return nullptr;
  }

 private:
  [[noreturn, gnu::cold]] void fail_without(const char* has, const char* lacks) const {
    fail(ErrorCode::incompatible, {"Codec ", name(), ": ", has, " is not 0, so ", lacks, " must be overridden"});
  }
  template <class Work>
  void with_decoded(const std::byte* block, std::size_t capacity, std::size_t first, Work work) const {
    if (dim() > detail::DecodedProduct::TileFloats)
      fail(ErrorCode::invalid_argument,
           {"Codec ", name(), ": rows of ", dim(), " floats, more than ", detail::DecodedProduct::TileFloats,
            ", need scores() and accumulate() of their own"});
    const auto decode_from = [&](std::size_t begin, Rows<float> rows) { decode(block, capacity, first + begin, rows); };
    work(detail::DecodedProduct(dim(), decode_from));
  }
};

}  // namespace kvc::inline KVC_ABI
