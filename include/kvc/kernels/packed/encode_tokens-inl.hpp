// Quantizing tokens one by one whose groups lie along their channels. Re-included, no guard.
//
// A tile needs 16 tokens to fill it; a token that is sealed alone is read along its channels instead, 16 at a time. Its
// codes take one plane of the value tiles, and one lane of the key tiles.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// Smallest and largest of `count` floats that follow each other.
inline void find_range(const float* x, std::size_t count, float& least, float& most) {
  Vector low = set(__builtin_inff()), high = set(-__builtin_inff());
  for (std::size_t i = 0; i < count; i += Width) {
    float rest[Width];
    if (i + Width > count)
      for (std::size_t j = 0; j < Width; ++j) rest[j] = x[i + j < count ? i + j : i];
    const Vector value = load(i + Width > count ? rest : x + i);
    low = minimum(value, low);
    high = maximum(value, high);
  }
  least = -max_of(subtract(zero(), low));
  most = max_of(high);
}

/// One token of a block: its row of floats, its number there, and scales and minima of up to TileLanes of its groups.
struct TokenRow {
  const float* x;
  std::size_t dim, index;
  float scale[TileLanes], low[TileLanes];

  std::size_t groups(const PackedLayout& layout) const { return dim / layout.group; }

  /// Scales and minima of groups from `first` on, stored, and kept as they will be read back; returns how many.
  std::size_t encode_metadata(const MetadataTarget& view, std::size_t first) {
    const PackedLayout& layout = view.layout;
    const std::size_t count = smaller(TileLanes, groups(layout) - first), stride = layout.metadata_stride();
    float least[TileLanes] = {}, most[TileLanes] = {};
    for (std::size_t g = 0; g < count; ++g)
      find_range(x + (first + g) * layout.group, layout.group, least[g], most[g]);
    Ranges ranges;
    KVC_UNROLL
    for (std::size_t k = 0; k < TileVectors; ++k) {
      ranges.low[k] = load(least + k * Width);
      ranges.high[k] = load(most + k * Width);
    }
    view.put(first * stride + index, stride, ranges, count, scale, low);
    return count;
  }

  /// Codes of `count` (at most TileLanes) channels from `channel` on, of group number g of those kept, and zeros behind them.
  void quantize_run(const PackedLayout& layout, std::size_t channel, std::size_t count, std::size_t g,
                    std::uint32_t* codes) const {
    float buffer[TileLanes];
    const float* from = contiguous(x + channel, 1, count, buffer);
    const Vector levels = set(static_cast<float>((1u << layout.bits) - 1));
    for (std::size_t i = 0; i < TileLanes; i += Width)
      store_words(codes + i, quantize(load(from + i), set(scale[g]), set(low[g]), levels));
    for (std::size_t i = count; i < TileLanes; ++i) codes[i] = 0;
  }
};

/// Values: channels are the lanes, the token is one plane of every tile. Planes before it keep their codes.
inline void encode_value_row(const MetadataTarget& view, std::uint32_t* codes, TokenRow& row) {
  const PackedLayout& layout = view.layout;
  const PackedLayout::CodePlace place = layout.code_place(row.index, 0);
  const PackedLayout::PlanePlace bit = layout.plane_place(place.plane);
  std::uint32_t kept[MaxUnitRows] = {};
  planes_before(layout, place.plane, kept);
  const Words low_mask = words((1u << layout.low_bits()) - 1);
  std::uint32_t* unit = codes + place.dword;
  std::uint32_t code[TileLanes];
  for (std::size_t first = 0, groups = 0; first < row.groups(layout); first += groups) {
    groups = row.encode_metadata(view, first);
    for (std::size_t g = 0; g < groups; ++g) {
      const std::size_t channel = (first + g) * layout.group;
      for (std::size_t lane = 0; lane < layout.group; lane += TileLanes, unit += layout.dword_rows() * TileLanes) {
        row.quantize_run(layout, channel + lane, smaller(TileLanes, layout.group - lane), g, code);
        for (std::size_t r = 0; r < layout.unit_rows(); ++r) {
          for (std::size_t i = 0; i < TileLanes; i += Width) {
            std::uint32_t* target = unit + r * TileLanes + i;
            const Words all = load_words(code + i);
            Words dwords = bit_and(load_words(target), words(kept[r]));
            if (r == bit.row) dwords = bit_or(dwords, shift_left_by(bit_and(all, low_mask), bit.shift));
            if (layout.bits == 3 && r == bit.high_row)
              dwords = bit_or(dwords, shift_left_by(shift_right<2>(all), bit.high_shift));
            store_words(target, dwords);
          }
        }
      }
    }
  }
}

/// Packs the codes of 32 channels as one lane of their dword rows.
template <unsigned Bits>
void pack_lane(const std::uint32_t* code, std::size_t rows, std::uint32_t* lane) {
  constexpr PackedLayout Layout{.bits = Bits};
  constexpr std::size_t Planes = Layout.planes();
  std::uint32_t packed[Bits] = {};
  for (std::size_t unit = 0; unit < 32 / Planes; ++unit, code += Planes) {
    KVC_UNROLL
    for (std::size_t plane = 0; plane < Planes; ++plane) {
      const PackedLayout::PlanePlace bit = Layout.plane_place(plane);
      packed[unit + bit.row] |= (code[plane] & ((1u << Layout.low_bits()) - 1)) << bit.shift;
      if constexpr (Bits == 3) packed[bit.high_row] |= code[plane] >> 2 << bit.high_shift;
    }
  }
  for (std::size_t r = 0; r < rows; ++r) lane[r * TileLanes] = packed[r];
}

/// Keys: channels are the depth, the token is one lane of every dword row.
inline void encode_key_row(const MetadataTarget& view, std::uint32_t* codes, TokenRow& row) {
  const PackedLayout& layout = view.layout;
  const auto pack = layout.bits == 2   ? pack_lane<2>
                    : layout.bits == 3 ? pack_lane<3>
                    : layout.bits == 4 ? pack_lane<4>
                                       : pack_lane<8>;
  std::uint32_t* lane = codes + layout.code_place(0, row.index).dword;
  std::uint32_t code[2 * TileLanes];
  for (std::size_t first = 0, groups = 0; first < row.groups(layout); first += groups) {
    groups = row.encode_metadata(view, first);
    for (std::size_t g = 0; g < groups; ++g) {
      for (std::size_t d = 0; d < layout.group; d += 2 * TileLanes) {
        const std::size_t channel = (first + g) * layout.group + d, count = smaller(2 * TileLanes, layout.group - d);
        const std::size_t half = smaller(TileLanes, count);
        row.quantize_run(layout, channel, half, g, code);
        row.quantize_run(layout, channel + half, count - half, g, code + TileLanes);
        const std::size_t rows = divide_up(count, layout.planes()) * layout.unit_rows();
        pack(code, rows, lane);
        lane += rows * TileLanes;
      }
    }
  }
  const std::size_t tile_lane = row.index % TileLanes;
  clear_padding(layout, codes, {row.index, tile_lane, 1}, 0, row.dim);
}

/// Encodes the area token by token if that pays: groups along the channels, and fewer tokens than a tile has lanes.
inline bool encode_tokens(const MetadataTarget& view, std::uint32_t* codes, const Area& area,
                          const ConstFloatMatrix& source) {
  const PackedLayout& layout = view.layout;
  const bool values = layout.along == GroupsAlong::lanes;
  const std::size_t tokens = values ? area.depth_count : area.lanes, dim = values ? area.lanes : area.depth_count;
  const bool whole =
      values ? area.lane_begin == 0 && dim == layout.lanes : area.depth_begin == 0 && dim == layout.depth;
  if (!whole || tokens >= TileLanes || dim % layout.group != 0) return false;
  if ((values ? source.lane_stride : source.depth_stride) != 1) return false;
  for (std::size_t token = 0; token < tokens; ++token) {
    TokenRow row;
    row.x = source.data + token * (values ? source.depth_stride : source.lane_stride);
    row.dim = dim;
    row.index = (values ? area.depth_begin : area.lane_begin) + token;
    values ? encode_value_row(view, codes, row) : encode_key_row(view, codes, row);
  }
  return true;
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
