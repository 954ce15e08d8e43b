#pragma once
/// The codecs of the library's own formats: in a header-only build kvc/codec/make.hpp includes this, with KVC_COMPILED one file
/// of the program does, through kvc/implementation.hpp.
#include <memory>

#include "kvc/codec/dense.hpp"
#include "kvc/codec/ggml.hpp"
#include "kvc/codec/group_quant.hpp"
#include "kvc/codec/some_channels.hpp"

namespace kvc::inline KVC_ABI {

KVC_FORWARD std::shared_ptr<const Codec> make_codec(const Dense& format, Role role, std::size_t dim) {
  return std::make_shared<DenseCodec>(format, role, dim);
}
KVC_FORWARD std::shared_ptr<const Codec> make_codec(const GroupQuant& format, Role role, std::size_t dim) {
  return std::make_shared<GroupQuantCodec>(format, role, dim);
}
KVC_FORWARD std::shared_ptr<const Codec> make_codec(const GgmlBlocks& format, Role, std::size_t dim) {
  return std::make_shared<GgmlCodec>(format, dim);
}
KVC_FORWARD std::shared_ptr<const Codec> make_codec(const SomeChannels& format, Role role, std::size_t dim) {
  return std::make_shared<SomeChannelsCodec>(format, role, dim);
}
KVC_FORWARD std::shared_ptr<const Codec> make_codec(const std::shared_ptr<const Codec>& codec, Role, std::size_t) {
  return codec;
}

}  // namespace kvc::inline KVC_ABI
