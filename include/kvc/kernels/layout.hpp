#pragma once
#include <cstddef>
#include <cstdint>

#include "kvc/format.hpp"
#include "kvc/tiles.hpp"

namespace kvc::inline KVC_ABI::kernels {

// Every block is a matrix x[depth][lane]. Lanes are what registers hold side by side; depth is the axis that products add up
// along. In the drawings and formulas of this folder, d stands for one depth.
//   keys:   lane = token, depth = channel
//   values: lane = channel, depth = token

/// A dense block: element (d, lane) is number (lane / 16) * tile_stride + d * depth_stride + lane % 16.
///   keys:   tiles of 16 tokens, channel after channel: depth_stride 16, tile_stride 16 * dim
///   values: token after token: depth_stride dim rounded up to 16, tile_stride 16
struct DenseLayout {
  Scalar type = Scalar::f16;
  std::size_t depth_stride = 0, tile_stride = 0;

  static constexpr DenseLayout of_keys(Scalar type, std::size_t dim) { return {type, TileLanes, TileLanes * dim}; }
  static constexpr DenseLayout of_values(Scalar type, std::size_t dim) {
    return {type, round_up(dim, TileLanes), TileLanes};
  }
  constexpr std::size_t index(std::size_t d, std::size_t lane) const {
    return lane / TileLanes * tile_stride + d * depth_stride + lane % TileLanes;
  }
};

/// Whether the elements that share a scale follow each other along the lanes or along the depth.
///   keys per channel:  tokens of one channel -> along lanes    keys per token:     channels of one token -> along depth
///   values per token:  channels of one token -> along lanes    values per channel: tokens of one channel -> along depth
enum class GroupsAlong : std::uint8_t { lanes, depth };

/// A block of group-quantized codes x[depth][lane] with a capacity of `lanes` × `depth` elements.
///
/// Codes: a dword holds 32 / bits codes of one lane at consecutive depths ("planes": plane i in bits [i * bits, (i + 1) *
/// bits)). A tile is dword_rows() rows of 16 dwords, so one 512-bit load, shift and mask give 16 lanes of one depth.
///
///          lane 0    lane 1        lane 15
///   row 0 | d 0..7 | d 0..7 | ... | d 0..7 |      (4 bits: 8 planes)
///   row 1 | d 8..15| ...
///
/// Codes of 3 bits lie in units of three rows: the low two bits as codes of 2 bits, the high bits in a row of their own, in
/// the order in which the low ones leave their row byte by byte, so that shift and mask still give four codes a dword:
///
///   row 0 | low bits of d 0..15  |      bit 2 i of the row:                        d = i
///   row 1 | low bits of d 16..31 |                                                 d = 16 + i
///   row 2 | high bits of d 0..31 |      bit 8 b + 4 h + k (b, k < 4; h < 2):       d = 16 h + 4 b + k
///
/// Groups along lanes start at a tile of their own, groups along the depth at a dword of their own; the rest is padding (zero).
/// The block in memory: codes, then scales, then minima:
///   along lanes: scale[lane / group][d]          along depth: scale[d / group][lane, their number rounded up to 16]
struct PackedLayout {
  unsigned bits = 4;
  GroupsAlong along = GroupsAlong::lanes;
  std::size_t group = 32;
  std::size_t lanes = 0, depth = 0;  // capacity
  Scalar metadata = Scalar::f16;

  /// The depths of one unit of dword rows, and its rows.
  constexpr std::size_t planes() const { return std::size_t{1} << planes_log2(); }
  constexpr unsigned planes_log2() const { return bits == 8 ? 2 : bits == 4 ? 3 : bits == 2 ? 4 : 5; }
  constexpr std::size_t unit_rows() const { return bits == 3 ? 3 : 1; }
  constexpr std::size_t tiles_per_group() const { return divide_up(group, TileLanes); }
  constexpr std::size_t rows_per_group() const { return divide_up(group, planes()) * unit_rows(); }
  constexpr std::size_t tiles() const {
    return along == GroupsAlong::lanes ? divide_up(lanes, group) * tiles_per_group() : divide_up(lanes, TileLanes);
  }
  constexpr std::size_t dword_rows() const {
    return along == GroupsAlong::lanes ? divide_up(depth, planes()) * unit_rows()
                                       : divide_up(depth, group) * rows_per_group();
  }
  constexpr std::size_t code_dwords() const { return tiles() * dword_rows() * TileLanes; }
  constexpr std::size_t metadata_stride() const {
    return along == GroupsAlong::lanes ? depth : round_up(lanes, TileLanes);
  }
  constexpr std::size_t metadata_count() const {
    return metadata_stride() * (along == GroupsAlong::lanes ? divide_up(lanes, group) : divide_up(depth, group));
  }
  constexpr std::size_t scale_offset() const { return code_dwords() * 4; }
  constexpr std::size_t minimum_offset() const { return scale_offset() + metadata_count() * scalar_bytes(metadata); }
  constexpr std::size_t bytes() const { return minimum_offset() + metadata_count() * scalar_bytes(metadata); }

  /// Areas begin on multiples of these.
  constexpr std::size_t lane_granule() const { return along == GroupsAlong::lanes ? group : TileLanes; }
  constexpr std::size_t depth_granule() const { return along == GroupsAlong::lanes ? planes() : group; }

  /// Where a code of one plane lies in its unit: row and bit offset of its low bits, and with 3 bits of its high bit.
  struct PlanePlace {
    std::size_t row;
    unsigned shift;
    std::size_t high_row;
    unsigned high_shift;
  };
  constexpr unsigned low_bits() const { return bits == 3 ? 2 : bits; }
  constexpr PlanePlace plane_place(std::size_t plane) const {
    if (bits != 3) return {0, static_cast<unsigned>(plane) * bits, 0, 0};
    const std::size_t half = plane / 16, in_half = plane % 16;
    return {half, static_cast<unsigned>(2 * in_half), 2,
            static_cast<unsigned>(8 * (in_half / 4) + 4 * half + in_half % 4)};
  }

  /// The dword that begins a code's unit, and the code's plane there. The unit's other rows follow TileLanes apart.
  struct CodePlace {
    std::size_t dword, plane;
  };
  constexpr CodePlace code_place(std::size_t d, std::size_t lane) const {
    if (along == GroupsAlong::lanes) {
      const std::size_t in_group = lane % group, tile = lane / group * tiles_per_group() + in_group / TileLanes;
      const std::size_t row = d / planes() * unit_rows();
      return {(tile * dword_rows() + row) * TileLanes + in_group % TileLanes, d % planes()};
    }
    const std::size_t in_group = d % group, tile = lane / TileLanes;
    const std::size_t row = d / group * rows_per_group() + in_group / planes() * unit_rows();
    return {(tile * dword_rows() + row) * TileLanes + lane % TileLanes, in_group % planes()};
  }
  /// The code at a place of the block whose codes begin at `dwords`.
  constexpr std::uint32_t code_at(const std::uint32_t* dwords, const CodePlace& place) const {
    const PlanePlace bit = plane_place(place.plane);
    const std::uint32_t* unit = dwords + place.dword;
    const std::uint32_t low = unit[bit.row * TileLanes] >> bit.shift & ((1u << low_bits()) - 1);
    return bits == 3 ? low | (unit[bit.high_row * TileLanes] >> bit.high_shift & 1u) << 2 : low;
  }
  /// Number of the scale and minimum of one element.
  constexpr std::size_t metadata_index(std::size_t d, std::size_t lane) const {
    return along == GroupsAlong::lanes ? lane / group * metadata_stride() + d : d / group * metadata_stride() + lane;
  }
};

}  // namespace kvc::kernels
