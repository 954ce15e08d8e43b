#include "catch_shim.hpp"

#include <vector>

#include "kvc/attention/piece_list.hpp"
#include "kvc/codec/make.hpp"

using namespace kvc;
using attention::ChunkRows;
using attention::Piece;
using attention::PieceList;

namespace {

/// Segments of so many rows each, in blocks of `capacity` rows, the first of which are not the head's.
std::vector<Segment> segments_of(const std::vector<std::size_t>& rows, std::size_t capacity) {
  const auto codec = make_codec(Dense{Scalar::f16}, Role::value, 16);
  std::vector<Segment> segments;
  std::size_t first = 0;
  for (const std::size_t count : rows) {
    segments.push_back({.block = Block::make(codec, capacity, std::pmr::new_delete_resource()),
                        .begin = capacity - count,
                        .end = capacity,
                        .first = first});
    first += count;
  }
  return segments;
}

std::size_t holder(const std::vector<Segment>& segments, std::size_t row) {
  std::size_t at = 0;
  while (row >= segments[at].first + segments[at].rows()) ++at;
  return at;
}

/// More pieces than a list holds at a time, of all sizes, an empty one among them.
std::vector<Segment> many_segments() {
  std::vector<std::size_t> rows;
  for (std::size_t i = 0; i < 150; ++i) rows.push_back(i % 7 == 3 ? 256 : i % 5 == 0 ? 1 : i == 50 ? 0 : 16);
  return segments_of(rows, 256);
}

}  // namespace

TEST_CASE("a piece list finds every row in order") {
  const auto segments = many_segments();
  PieceList list(segments);
  const std::size_t rows = segments.back().first + segments.back().rows();
  for (std::size_t row = 0; row < rows; ++row) {
    const Piece* piece = list.find(row);
    const Segment& expected = segments[holder(segments, row)];
    REQUIRE(piece != nullptr);
    REQUIRE(piece->data == expected.block->data());
    REQUIRE(piece->begin == expected.begin);
    REQUIRE(piece->first == expected.first);
    REQUIRE(piece->end == expected.first + expected.rows());
  }
  CHECK(list.find(rows) == nullptr);
}

TEST_CASE("a piece list finds rows in any order") {
  const auto segments = many_segments();
  PieceList list(segments);
  const std::size_t rows = segments.back().first + segments.back().rows();
  for (std::size_t i = 0, row = 0; i < 2000; ++i, row = (row * 31 + 7) % rows) {
    const Piece* piece = list.find(row);
    REQUIRE(piece != nullptr);
    REQUIRE(piece->data == segments[holder(segments, row)].block->data());
  }
}

TEST_CASE("a piece list of no segments finds nothing") {
  PieceList list({});
  CHECK(list.find(0) == nullptr);
  CHECK(list.find(5) == nullptr);
}

TEST_CASE("the way to the next chunk leads to the row a chunk later, wherever the list was reloaded") {
  const auto segments = segments_of(std::vector<std::size_t>(100, 256), 256);
  PieceList list(segments);
  for (std::size_t chunk = 0; chunk + 1 < segments.size(); ++chunk) {
    const Piece* piece = list.find(chunk * ChunkRows);
    REQUIRE(piece != nullptr);
    CHECK(piece->data + list.bytes_to_next_chunk(chunk * ChunkRows) == segments[chunk + 1].block->data());
  }
  list.find(99 * ChunkRows);
  CHECK(list.bytes_to_next_chunk(99 * ChunkRows) == 0);
}

TEST_CASE("the way to a row that lies elsewhere in its block is not known") {
  const auto segments = segments_of({256, 16, 240}, 256);
  PieceList list(segments);
  list.find(0);
  CHECK(list.bytes_to_next_chunk(0) == 0);
}

TEST_CASE("behind the last chunk the way leads to what is read after these rows, if it lies alike") {
  const auto here = segments_of({256, 256}, 256), alike = segments_of({256}, 256), other = segments_of({64}, 64);
  for (const bool same : {true, false}) {
    const auto& after = same ? alike : other;
    PieceList list(here, after);
    list.find(0);
    CHECK(here[0].block->data() + list.bytes_to_next_chunk(0) == here[1].block->data());
    list.find(ChunkRows);
    const std::ptrdiff_t way = list.bytes_to_next_chunk(ChunkRows);
    CHECK((same ? here[1].block->data() + way == after[0].block->data() : way == 0));
  }
}
