#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/format.hpp"
#include "kvc/session/wire.hpp"
#include "kvc/stream.hpp"

// Streams that a policy fitted to a head (Stage::fit): only these stand in a session, all others follow from the policy.
namespace kvc::inline KVC_ABI::session {

enum class FormatKind : std::uint8_t { none, dense, group_quant, ggml_blocks, some_channels };

/// Throws Error(incompatible) for a format that only a program can say.
inline void put_format(Packer& packer, const std::optional<Format>& format) {
  const auto kind = [&](FormatKind is) { packer.put<std::uint8_t>(static_cast<std::uint8_t>(is)); };
  if (!format) {
    kind(FormatKind::none);
  } else if (const auto* dense = format->get_if<Dense>()) {
    kind(FormatKind::dense);
    packer.put<std::uint8_t>(static_cast<std::uint8_t>(dense->type));
    packer.put_flag(dense->widens);
  } else if (const auto* quant = format->get_if<GroupQuant>()) {
    kind(FormatKind::group_quant);
    packer.put<std::uint8_t>(static_cast<std::uint8_t>(quant->bits));
    packer.put<std::uint8_t>(static_cast<std::uint8_t>(quant->axis));
    packer.put_size(quant->group);
    packer.put<std::uint8_t>(static_cast<std::uint8_t>(quant->metadata));
    packer.put<std::uint8_t>(static_cast<std::uint8_t>(quant->fit));
  } else if (const auto* ggml = format->get_if<GgmlBlocks>()) {
    kind(FormatKind::ggml_blocks);
    packer.put<std::uint8_t>(static_cast<std::uint8_t>(ggml->type));
  } else if (const auto* some = format->get_if<SomeChannels>()) {
    kind(FormatKind::some_channels);
    packer.put_size(some->kept.size());
    for (const std::size_t channel : some->kept) packer.put<std::uint32_t>(static_cast<std::uint32_t>(channel));
  } else {
    fail(ErrorCode::incompatible,
         "save: a policy has fitted a format to a head that is none of Dense, GroupQuant, GgmlBlocks and SomeChannels; "
         "what it is cannot be written down");
  }
}

/// An enumerator, of which `last` is the last.
template <class Enum>
Enum take_enum(Unpacker& from, Enum last, const char* what) {
  const auto number = from.get<std::uint8_t>();
  if (number > static_cast<std::uint8_t>(last)) from.damaged({what, " is ", number, ", which means nothing"});
  return static_cast<Enum>(number);
}

inline std::optional<Format> take_format(Unpacker& from) {
  switch (take_enum(from, FormatKind::some_channels, "the kind of a format")) {
    case FormatKind::none:
      break;
    case FormatKind::dense: {
      const auto type = take_enum(from, Scalar::bf16, "an element type");
      return Dense{.type = type, .widens = from.flag()};
    }
    case FormatKind::group_quant: {
      GroupQuant quant{.bits = from.get<std::uint8_t>()};
      quant.axis = take_enum(from, Axis::token, "the axis of a format");
      quant.group = from.size(CacheShape::MostDim, "the group of a format");
      quant.metadata = take_enum(from, Scalar::bf16, "the metadata of a format");
      quant.fit = take_enum(from, Fit::half_quadratic, "the fit of a format");
      return quant;
    }
    case FormatKind::ggml_blocks:
      return GgmlBlocks{.type = take_enum(from, GgmlType::nvfp4, "a type of ggml")};
    case FormatKind::some_channels: {
      const std::size_t count = from.size(CacheShape::MostDim, "the number of channels");
      SomeChannels some;
      for (const std::uint32_t channel : from.list<std::uint32_t>(count)) some.kept.push_back(channel);
      return some;
    }
  }
  return std::nullopt;
}

inline void put_stream(Packer& packer, const Stream& stream) {
  put_format(packer, stream.format);
  for (const std::size_t number : {stream.sinks, stream.recent, stream.batch}) packer.put_size(number);
  packer.put_flag(stream.prompt_only);
  packer.put_flag(stream.whole_prompt);
  packer.put_size(stream.classes.size());
  for (const auto& format : stream.classes) put_format(packer, format);
}
inline Stream take_stream(Unpacker& from) {
  Stream stream{.format = take_format(from)};
  stream.sinks = from.limit("the sinks of a stream");
  stream.recent = from.limit("the recent tokens of a stream");
  stream.batch = from.size(CacheShape::MostDim, "the batch of a stream");
  stream.prompt_only = from.flag();
  stream.whole_prompt = from.flag();
  const std::size_t classes = from.size(255, "the number of classes");
  for (std::size_t i = 0; i < classes; ++i) stream.classes.push_back(take_format(from));
  return stream;
}

}  // namespace kvc::inline KVC_ABI::session
