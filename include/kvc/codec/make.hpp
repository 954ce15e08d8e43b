#pragma once
#include <memory>
#include <string>

#include "kvc/codec/dense.hpp"
#include "kvc/codec/ggml.hpp"
#include "kvc/codec/group_quant.hpp"

namespace kvc::inline KVC_ABI {

/// The codec of `format` for rows of `dim` floats. Throws Error if the format cannot encode them.
inline std::shared_ptr<const Codec> make_codec(const Format& format, Role role, std::size_t dim) {
  if (const auto* dense = std::get_if<Dense>(&format)) return std::make_shared<DenseCodec>(*dense, role, dim);
  if (const auto* quant = std::get_if<GroupQuant>(&format)) return std::make_shared<GroupQuantCodec>(*quant, role, dim);
  if (const auto* blocks = std::get_if<GgmlBlocks>(&format)) return std::make_shared<GgmlCodec>(*blocks, dim);
  const auto& custom = std::get<std::shared_ptr<const Codec>>(format);
  if (!custom) fail(ErrorCode::invalid_argument, "Format: the codec is null");
  if (custom->dim() != dim)
    fail(ErrorCode::shape_mismatch, {"Format: codec ", custom->name(), " encodes rows of ", custom->dim(),
                                     " floats, the cache has rows of ", dim});
  return custom;
}

}  // namespace kvc
