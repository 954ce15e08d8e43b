#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory_resource>
#include <optional>
#include <utility>
#include <vector>

#include "kvc/codec/make.hpp"
#include "kvc/storage/row_store.hpp"

namespace kvc::inline KVC_ABI {

namespace detail {

inline const char* side_of(Role role) {
  return role == Role::key ? "key" : "value";
}

/// The codecs of a stream by class of precision; empty if none seals.
inline std::vector<RowTable::SealedCodec> sealed_codecs(const Stream& stream, Role role, std::size_t dim) {
  std::vector<RowTable::SealedCodec> codecs;
  const auto add = [&](const std::optional<Format>& format) {
    auto& made = codecs.emplace_back();
    if (!format || format->get_if<Dense>()) return;
    made.codec = make_codec(*format, role, dim);
    if (stream.batch == 0 || stream.batch % made.codec->granule() != 0)
      fail(ErrorCode::invalid_argument,
           {"Stream (", side_of(role), "): batch (", stream.batch,
            ") must be a positive multiple of the tokens that share a scale (", made.codec->granule(), ")"});
    if (stream.whole_prompt && made.codec->granule() > 1 && !made.codec->of_rows(1))
      fail(ErrorCode::invalid_argument, {"Stream (", side_of(role),
                                         "): whole_prompt needs a format that encodes any number "
                                         "of tokens, but ",
                                         made.codec->name(), " encodes multiples of ", made.codec->granule()});
  };
  add(stream.format);
  for (const auto& format : stream.classes) add(format);
  if (codecs.size() > 256)
    fail(ErrorCode::invalid_argument, {"Stream (", side_of(role), "): ", codecs.size() - 1,
                                       " classes of precision; there may be 255 besides class 0"});
  if (std::ranges::none_of(codecs, [](const auto& each) { return each.codec != nullptr; })) codecs.clear();
  return codecs;
}

/// Refuses rows that the formats of a stream do not hold.
inline void require_within(const RowStore& store, Role role) {
  std::vector<float> row(store.dim());
  for (std::size_t slot = 0; slot < store.map().size(); ++slot) {
    store.gather(slot, {row.data(), 1, row.size()});
    for (const float x : row)
      if (!(std::abs(x) <= store.limit()))
        fail(ErrorCode::non_finite, {"set_streams: slot ", slot, " has a ", side_of(role), " with an element of ", x,
                                     ", beyond ", store.limit(), ", the most that the new formats hold"});
  }
}

}  // namespace detail

/// An empty store of the keys, or the values, of a head whose rows are `dense` unless its stream says otherwise; an element type
/// that the stream says is kept whatever the rows are. Throws Error if the stream's formats cannot encode rows of `dim` floats.
[[gnu::cold]] inline RowStore make_store(const Stream& stream, Role role, std::size_t dim, const Dense& dense,
                           std::pmr::memory_resource* memory) {
  // A Dense stream only chooses the element type; anything else is sealed out of dense rows.
  const auto* own = stream.format ? stream.format->get_if<Dense>() : nullptr;
  const Dense& plain = own ? *own : dense;
  const bool widens = !own && dense.type == Scalar::f16 && dense.widens;
  return {make_codec(plain, role, dim), widens ? make_codec(Dense{Scalar::f32}, role, dim) : nullptr,
          detail::sealed_codecs(stream, role, dim), stream, memory};
}

/// Seals with other formats from now on. Nothing may be sealed yet, the type of dense rows stays as it is, and the formats must
/// hold the rows that there are. Throws Error otherwise; the store may have changed then.
[[gnu::cold]] inline void set_stream(RowStore& store, const Stream& stream, Role role) {
  if (store.sealed_rows() != 0)
    fail(ErrorCode::invalid_argument, {"set_streams: ", store.sealed_rows(), " ", detail::side_of(role),
                                       " rows are sealed already; only a head without any can change its format"});
  if (stream.format && stream.format->get_if<Dense>())
    if (const auto dense = make_codec(*stream.format, role, store.dim()); dense->name() != store.plain_codec()->name())
      fail(ErrorCode::invalid_argument, {"set_streams: ", detail::side_of(role), " rows are stored in ",
                                         store.plain_codec()->name(), " and cannot become ", dense->name()});
  const float before = store.limit();
  store.table().sealed = detail::sealed_codecs(stream, role, store.dim());
  store.table().stream = stream;
  if (store.limit() < before) detail::require_within(store, role);
  if (store.seals()) store.table().free.clear();
}

}  // namespace kvc::inline KVC_ABI
