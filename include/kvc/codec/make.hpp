#pragma once
/// Makes codecs of formats: include this where a format is named.
#include <concepts>
#include <memory>

#include "kvc/codec/codec.hpp"
#if !defined(KVC_COMPILED)
#include "kvc/codec/implementation.hpp"
#endif

namespace kvc::inline KVC_ABI {

/// The codec of `format` for rows of `dim` floats. Throws Error if the format cannot encode them, or if what its author's
/// make_codec() returned is null or of other rows. (A template, so that nothing else becomes a Format on the way here.)
template <std::same_as<Format> F>
std::shared_ptr<const Codec> make_codec(const F& format, Role role, std::size_t dim) {
  auto codec = format.make_(format.description_.get(), role, dim);
  if (!codec) fail(ErrorCode::invalid_argument, "Format: the codec is null");
  if (codec->dim() != dim)
    fail(ErrorCode::shape_mismatch, {"Format: codec ", codec->name(), " encodes rows of ", codec->dim(),
                                     " floats, the cache has rows of ", dim});
  return codec;
}

}  // namespace kvc::inline KVC_ABI
