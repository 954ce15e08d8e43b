// Quantizing the window of a block: token by token, in strips, or a unit of dwords at a time. Re-included, no guard.
namespace kvc::kernels {
inline namespace KVC_ABI {
namespace KVC_TARGET {

inline void packed_encode(const PackedLayout& layout, void* block, const Window& window,
                          const ConstFloatMatrix& source) {
  const MetadataView view(layout, block);
  std::uint32_t* codes = static_cast<std::uint32_t*>(block);
  if (encode_tokens(view, codes, window, source)) return;
  encode_metadata(view, window, source);
  const std::size_t lane_end = window.lane_begin + window.lanes, p_end = window.p_begin + window.p_count;
  for (std::size_t lane = window.lane_begin; lane < lane_end;) {
    const TileSpan span = span_at(layout, lane, lane_end);
    for (std::size_t p = window.p_begin; p < p_end;) {
      p = encode_strips(view, codes, window, span, p, source);
      for (const std::size_t strip_end = smaller(p_end, p / StripP * StripP + StripP); p < strip_end;)
        p = encode_unit(view, codes, window, span, p, source);
    }
    clear_padding(layout, codes, span, window.p_begin, p_end);
    lane += span.count;
  }
}

}  // namespace KVC_TARGET
}  // namespace KVC_ABI
}  // namespace kvc::kernels
