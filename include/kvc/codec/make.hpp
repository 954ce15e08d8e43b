#pragma once
/// Makes codecs of formats: include this where a format is named.
#include <memory>

#include "kvc/codec/codec.hpp"
#if !defined(KVC_COMPILED)
#include "kvc/codec/implementation.hpp"
#endif

namespace kvc::inline KVC_ABI {

/// The codec of `format` for rows of `dim` floats. Throws Error if the format cannot encode them.
inline std::shared_ptr<const Codec> make_codec(const Format& format, Role role, std::size_t dim) {
  return format.codec(role, dim);
}

}  // namespace kvc::inline KVC_ABI
