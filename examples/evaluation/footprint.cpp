#include "footprint.hpp"

#include <algorithm>
#include <cmath>

#include "kvc/codec/dense.hpp"
#include "kvc/codec/group_quant.hpp"
#include "kvc/error.hpp"
#include "kvc/storage/row_store.hpp"

namespace evaluation {
namespace {

template <class Visit>
void for_each_head(const kvc::CacheShape& shape, Visit visit) {
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head) visit(kvc::HeadId{layer, head});
}

void add_rows(Parts& parts, const kvc::RowStore& rows) {
  for (const kvc::Segment& segment : rows.segments()) {
    const kvc::Codec& codec = segment.block->codec();
    const double owners = segment.norms ? 2 : 1;  // two layers share a block of directions
    const auto used = static_cast<double>(std::min(codec.block_bytes(segment.rows()), segment.block->bytes())) / owners;
    // Directions that two layers share are sealed, and may be as dense as any row.
    if (!segment.sealed || dynamic_cast<const kvc::DenseCodec*>(&codec) != nullptr) {
      parts.dense += used;
    } else if (const auto* grouped = dynamic_cast<const kvc::GroupQuantCodec*>(&codec)) {
      const auto bits = static_cast<double>(segment.rows() * codec.dim() * grouped->format().bits);
      const double codes = std::min(used, bits / 8 / owners);
      parts.codes += codes;
      parts.scales += used - codes;
    } else {
      parts.codes += used;
    }
  }
}

constexpr char Digits[] = "0123456789abcdef";

}  // namespace

Parts& Parts::operator+=(const Parts& other) {
  dense += other.dense;
  codes += other.codes;
  scales += other.scales;
  metadata += other.metadata;
  slack += other.slack;
  return *this;
}

Parts& Parts::operator/=(double divisor) {
  for (double* part : {&dense, &codes, &scales, &metadata, &slack}) *part /= divisor;
  return *this;
}

std::string KeptPicture::to_text() const {
  std::string text;
  for (const std::uint8_t pixel : pixels) text.push_back(Digits[pixel]);
  return text;
}

KeptPicture KeptPicture::from_text(std::size_t columns, const std::string& text) {
  KeptPicture picture{columns, {}};
  for (const char character : text) {
    const std::size_t value = std::string_view(Digits, 16).find(character);
    if (value == std::string_view::npos)
      kvc::fail(kvc::ErrorCode::bad_file, "a picture of kept positions has a pixel that is no hexadecimal digit");
    picture.pixels.push_back(static_cast<std::uint8_t>(value));
  }
  if (columns == 0 ? !text.empty() : text.size() % columns != 0)
    kvc::fail(kvc::ErrorCode::bad_file, "the rows of a picture of kept positions are not whole");
  return picture;
}

Footprint measure(const kvc::CacheCore& cache) {
  const kvc::Stats stats = cache.stats();
  Footprint footprint{static_cast<double>(stats.bytes()),
                      static_cast<double>(stats.dense_bytes),
                      static_cast<double>(stats.slots) / static_cast<double>(stats.seen * cache.shape().heads()),
                      {}};
  for_each_head(cache.shape(), [&](kvc::HeadId id) {
    add_rows(footprint.parts, cache.key_rows(id));
    add_rows(footprint.parts, cache.value_rows(id));
  });
  footprint.parts.metadata = static_cast<double>(stats.metadata);
  footprint.parts.slack = static_cast<double>(stats.slack);
  return footprint;
}

KeptPicture picture(const kvc::CacheCore& cache, std::size_t prompt) {
  KeptPicture result{std::min(prompt, KeptPicture::Columns), {}};
  const auto begin_of = [&](std::size_t column) { return column * prompt / result.columns; };
  for_each_head(cache.shape(), [&](kvc::HeadId id) {
    std::vector<std::size_t> counts(result.columns);
    for (const kvc::Position position : cache.positions(id)) {
      const auto at = static_cast<std::size_t>(position);
      if (at >= prompt) continue;
      std::size_t column = at * result.columns / prompt;
      while (column + 1 < result.columns && begin_of(column + 1) <= at) ++column;
      ++counts[column];
    }
    for (std::size_t column = 0; column < result.columns; ++column) {
      const auto width = static_cast<double>(begin_of(column + 1) - begin_of(column));
      const double share = std::min(1.0, static_cast<double>(counts[column]) / width);
      // What is there at all is never drawn as if it were not.
      const double shade = std::max(counts[column] != 0 ? 1.0 : 0.0, std::round(share * KeptPicture::Whole));
      result.pixels.push_back(static_cast<std::uint8_t>(shade));
    }
  });
  return result;
}

}  // namespace evaluation
