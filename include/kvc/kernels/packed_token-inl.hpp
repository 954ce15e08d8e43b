// Quantizing tokens one by one whose groups lie along their channels. Re-included, no guard.
//
// A tile needs 16 tokens to fill it; a token that is sealed alone is read along its channels instead, 16 at a time. Its
// codes take one plane of the value tiles, and one lane of the key tiles.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// Smallest and largest of `count` floats that follow each other.
KVC_ALWAYS_INLINE void find_range(const float* x, std::size_t count, float& least, float& most) {
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

/// One token of a block: its row of floats, its number there, and where its scales and minima lie.
struct TokenRow {
  const float* x;
  std::size_t dim, index;

  std::size_t groups(const PackedLayout& layout) const { return dim / layout.group; }
};

/// Scales and minima of up to TileLanes groups from `first` on, stored, and returned as they will be read back.
inline std::size_t encode_token_metadata(const MetadataView& view, const TokenRow& row, std::size_t first, float* scale,
                                         float* low) {
  const PackedLayout& layout = view.layout;
  const std::size_t count = smaller(TileLanes, row.groups(layout) - first);
  float least[TileLanes] = {}, most[TileLanes] = {};
  for (std::size_t g = 0; g < count; ++g)
    find_range(row.x + (first + g) * layout.group, layout.group, least[g], most[g]);
  const Vector levels = set(static_cast<float>((1u << layout.bits) - 1));
  for (std::size_t i = 0; i < TileLanes; i += Width) {
    store(scale + i, divide(subtract(load(most + i), load(least + i)), levels));
    store(low + i, add(load(least + i), zero()));
  }
  const std::size_t stride = layout.metadata_stride(), index = first * stride + row.index;
  store_metadata(view.scales, layout.metadata, index, scale, count, stride);
  store_metadata(view.minima, layout.metadata, index, low, count, stride);
  return count;
}

/// Codes of `count` (at most TileLanes) channels of one group, and zeros behind them.
template <unsigned Bits>
void quantize_run(const float* x, std::size_t count, float scale, float low, std::uint32_t* codes) {
  float buffer[TileLanes];
  x = contiguous(x, 1, count, buffer);
  const Vector levels = set(static_cast<float>((1u << Bits) - 1));
  for (std::size_t i = 0; i < TileLanes; i += Width)
    store_words(codes + i, quantize(load(x + i), set(scale), set(low), levels));
  for (std::size_t i = count; i < TileLanes; ++i) codes[i] = 0;
}

/// Values: channels are the lanes, the token is one plane of every tile. Planes before it keep their codes.
template <unsigned Bits>
void encode_value_row(const MetadataView& view, std::uint32_t* codes, const TokenRow& row) {
  constexpr PackedLayout OfBits{.bits = Bits};
  constexpr std::size_t Rows = OfBits.unit_rows();
  constexpr std::uint32_t LowMask = (1u << OfBits.low_bits()) - 1;
  const PackedLayout& layout = view.layout;
  const PackedLayout::CodePlace place = layout.code_place(row.index, 0);
  const PackedLayout::PlanePlace bit = OfBits.plane_place(place.plane);
  std::uint32_t kept[Rows] = {};
  for (std::size_t plane = 0; plane < place.plane; ++plane) {
    const PackedLayout::PlanePlace before = OfBits.plane_place(plane);
    kept[before.row] |= LowMask << before.shift;
    if constexpr (Bits == 3) kept[before.high_row] |= 1u << before.high_shift;
  }
  std::uint32_t* unit = codes + place.dword;
  float scale[TileLanes], low[TileLanes];
  std::uint32_t code[TileLanes];
  for (std::size_t first = 0; first < row.groups(layout);) {
    const std::size_t groups = encode_token_metadata(view, row, first, scale, low);
    for (std::size_t g = 0; g < groups; ++g) {
      const float* x = row.x + (first + g) * layout.group;
      for (std::size_t lane = 0; lane < layout.group; lane += TileLanes, unit += layout.dword_rows() * TileLanes) {
        quantize_run<Bits>(x + lane, smaller(TileLanes, layout.group - lane), scale[g], low[g], code);
        for (std::size_t i = 0; i < TileLanes; i += Width) {
          const Words all = load_words(code + i), placed = shift_left_by(bit_and(all, words(LowMask)), bit.shift);
          KVC_UNROLL
          for (std::size_t r = 0; r < Rows; ++r) {
            std::uint32_t* target = unit + r * TileLanes + i;
            Words dwords = bit_and(load_words(target), words(kept[r]));
            if (r == bit.row) dwords = bit_or(dwords, placed);
            if (Bits == 3 && r == bit.high_row)
              dwords = bit_or(dwords, shift_left_by(shift_right<2>(all), bit.high_shift));
            store_words(target, dwords);
          }
        }
      }
    }
    first += groups;
  }
}

/// Packs the codes of 32 channels as one lane of their dword rows.
template <unsigned Bits>
KVC_ALWAYS_INLINE void pack_lane(const std::uint32_t* code, std::size_t rows, std::uint32_t* lane) {
  if constexpr (Bits == 3) {
    std::uint32_t packed[3] = {};
    KVC_UNROLL
    for (std::size_t plane = 0; plane < 32; ++plane) {
      constexpr PackedLayout Layout{.bits = 3};
      const PackedLayout::PlanePlace bit = Layout.plane_place(plane);
      packed[bit.row] |= (code[plane] & 3) << bit.shift;
      packed[bit.high_row] |= code[plane] >> 2 << bit.high_shift;
    }
    for (std::size_t r = 0; r < rows; ++r) lane[r * TileLanes] = packed[r];
  } else {
    for (std::size_t r = 0; r < rows; ++r, code += 32 / Bits) {
      std::uint32_t packed = 0;
      KVC_UNROLL
      for (std::size_t plane = 0; plane < 32 / Bits; ++plane) packed |= code[plane] << plane * Bits;
      lane[r * TileLanes] = packed;
    }
  }
}

/// Keys: channels are p, the token is one lane of every dword row.
template <unsigned Bits>
void encode_key_row(const MetadataView& view, std::uint32_t* codes, const TokenRow& row) {
  const PackedLayout& layout = view.layout;
  std::uint32_t* lane = codes + layout.code_place(0, row.index).dword;
  float scale[TileLanes], low[TileLanes];
  std::uint32_t code[2 * TileLanes];
  for (std::size_t first = 0; first < row.groups(layout);) {
    const std::size_t groups = encode_token_metadata(view, row, first, scale, low);
    for (std::size_t g = 0; g < groups; ++g) {
      const float* x = row.x + (first + g) * layout.group;
      for (std::size_t p = 0; p < layout.group; p += 2 * TileLanes) {
        const std::size_t count = smaller(2 * TileLanes, layout.group - p), half = smaller(TileLanes, count);
        quantize_run<Bits>(x + p, half, scale[g], low[g], code);
        if (count > half)
          quantize_run<Bits>(x + p + half, count - half, scale[g], low[g], code + half);
        else
          for (std::size_t i = TileLanes; i < 2 * TileLanes; ++i) code[i] = 0;
        const std::size_t rows = divide_up(count, layout.planes()) * layout.unit_rows();
        pack_lane<Bits>(code, rows, lane);
        lane += rows * TileLanes;
      }
    }
    first += groups;
  }
  const std::size_t tile_lane = row.index % TileLanes;
  clear_padding(layout, codes, {row.index / TileLanes, tile_lane, row.index, 1}, 0, row.dim);
}

template <unsigned Bits>
void encode_token(const MetadataView& view, std::uint32_t* codes, const TokenRow& row) {
  if (view.layout.along == GroupsAlong::lanes)
    encode_value_row<Bits>(view, codes, row);
  else
    encode_key_row<Bits>(view, codes, row);
}

/// Encodes the window token by token if that pays: groups along the channels, and fewer tokens than a tile has lanes.
inline bool encode_tokens(const MetadataView& view, std::uint32_t* codes, const Window& window,
                          const ConstFloatMatrix& source) {
  const PackedLayout& layout = view.layout;
  const bool values = layout.along == GroupsAlong::lanes;
  const std::size_t tokens = values ? window.p_count : window.lanes, dim = values ? window.lanes : window.p_count;
  const bool whole = values ? window.lane_begin == 0 && dim == layout.lanes : window.p_begin == 0 && dim == layout.p;
  if (!whole || tokens >= TileLanes || dim % layout.group != 0) return false;
  if ((values ? source.lane_stride : source.p_stride) != 1) return false;
  for (std::size_t token = 0; token < tokens; ++token) {
    const TokenRow row{source.data + token * (values ? source.p_stride : source.lane_stride), dim,
                       (values ? window.p_begin : window.lane_begin) + token};
    switch (layout.bits) {
      case 2:
        encode_token<2>(view, codes, row);
        break;
      case 3:
        encode_token<3>(view, codes, row);
        break;
      case 4:
        encode_token<4>(view, codes, row);
        break;
      default:
        encode_token<8>(view, codes, row);
    }
  }
  return true;
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
