#pragma once
#include <cstddef>
#include <cstdint>

#include "kvc/format.hpp"

namespace kvc::kernels {

/// Lanes come in tiles of 16 on every machine: one AVX-512 register, two of AVX2, four of NEON.
inline constexpr std::size_t TileLanes = 16;

constexpr std::size_t divide_up(std::size_t count, std::size_t by) {
  return (count + by - 1) / by;
}
constexpr std::size_t round_up(std::size_t count, std::size_t by) {
  return divide_up(count, by) * by;
}

/// A dense block x[p][lane]: element (p, lane) is number (lane / 16) * tile_stride + p * p_stride + lane % 16.
///   keys   (lane = token, p = channel): tiles of 16 tokens, channel after channel: p_stride 16, tile_stride 16 * dim
///   values (lane = channel, p = token): token after token: p_stride dim rounded up to 16, tile_stride 16
struct DenseLayout {
  Scalar type = Scalar::f16;
  std::size_t p_stride = 0, tile_stride = 0;

  static constexpr DenseLayout of_keys(Scalar type, std::size_t dim) { return {type, TileLanes, TileLanes * dim}; }
  static constexpr DenseLayout of_values(Scalar type, std::size_t dim) {
    return {type, round_up(dim, TileLanes), TileLanes};
  }
  constexpr std::size_t index(std::size_t p, std::size_t lane) const {
    return lane / TileLanes * tile_stride + p * p_stride + lane % TileLanes;
  }
};

/// Whether the elements that share a scale follow each other along the lanes or along p.
///   keys per channel:  tokens of one channel   -> along lanes     keys per token:    channels of one token -> along p
///   values per token:  channels of one token   -> along lanes     values per channel: tokens of one channel -> along p
enum class GroupsAlong : std::uint8_t { lanes, p };

/// A block of group-quantized codes x[p][lane] with `lanes` × `p` elements of capacity.
///
/// Codes: a dword holds one lane and 32/bits consecutive p ("planes": plane i in bits [i * bits, (i + 1) * bits)). A tile is
/// dword_rows() rows of 16 dwords, so one 512-bit load, shift and mask give 16 lanes of one p.
///
///          lane 0    lane 1        lane 15
///   row 0 | p 0..7 | p 0..7 | ... | p 0..7 |      (4 bits: 8 planes)
///   row 1 | p 8..15| ...
///
/// Groups along lanes start at a tile of their own; groups along p at a dword of their own; the rest is padding (zero).
/// The block in memory: codes, then scales, then minima:
///   along lanes: scale[lane / group][p]          along p: scale[p / group][lane rounded up to 16]
struct PackedLayout {
  unsigned bits = 4;
  GroupsAlong along = GroupsAlong::lanes;
  std::size_t group = 32;
  std::size_t lanes = 0, p = 0;  // capacity
  Scalar metadata = Scalar::f16;

  constexpr std::size_t planes() const { return 32 / bits; }
  constexpr std::size_t tiles_per_group() const { return divide_up(group, TileLanes); }
  constexpr std::size_t rows_per_group() const { return divide_up(group, planes()); }
  constexpr std::size_t tiles() const {
    return along == GroupsAlong::lanes ? divide_up(lanes, group) * tiles_per_group() : divide_up(lanes, TileLanes);
  }
  constexpr std::size_t dword_rows() const {
    return along == GroupsAlong::lanes ? divide_up(p, planes()) : divide_up(p, group) * rows_per_group();
  }
  constexpr std::size_t code_dwords() const { return tiles() * dword_rows() * TileLanes; }
  constexpr std::size_t metadata_stride() const { return along == GroupsAlong::lanes ? p : round_up(lanes, TileLanes); }
  constexpr std::size_t metadata_count() const {
    return metadata_stride() * (along == GroupsAlong::lanes ? divide_up(lanes, group) : divide_up(p, group));
  }
  constexpr std::size_t scale_offset() const { return code_dwords() * 4; }
  constexpr std::size_t minimum_offset() const { return scale_offset() + metadata_count() * scalar_bytes(metadata); }
  constexpr std::size_t bytes() const { return minimum_offset() + metadata_count() * scalar_bytes(metadata); }

  /// Windows begin on multiples of these.
  constexpr std::size_t lane_granule() const { return along == GroupsAlong::lanes ? group : TileLanes; }
  constexpr std::size_t p_granule() const { return along == GroupsAlong::lanes ? planes() : group; }

  /// Dword and bit offset of one code.
  struct CodePlace {
    std::size_t dword;
    unsigned shift;
  };
  constexpr CodePlace code_place(std::size_t p_index, std::size_t lane) const {
    std::size_t tile = lane / TileLanes, tile_lane = lane % TileLanes;
    std::size_t row = p_index / planes(), plane = p_index % planes();
    if (along == GroupsAlong::lanes) {
      tile = lane / group * tiles_per_group() + lane % group / TileLanes;
      tile_lane = lane % group % TileLanes;
    } else {
      row = p_index / group * rows_per_group() + p_index % group / planes();
      plane = p_index % group % planes();
    }
    return {(tile * dword_rows() + row) * TileLanes + tile_lane, static_cast<unsigned>(plane) * bits};
  }
  /// Number of the scale and minimum of one element.
  constexpr std::size_t metadata_index(std::size_t p_index, std::size_t lane) const {
    return along == GroupsAlong::lanes ? lane / group * metadata_stride() + p_index
                                       : p_index / group * metadata_stride() + lane;
  }
};

}  // namespace kvc::kernels
