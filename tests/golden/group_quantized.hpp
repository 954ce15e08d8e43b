#pragma once
#include <kvc/codec/group_quant.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "golden/runner.hpp"
#include "support/oracle.hpp"

namespace golden {

/// A tensor's elements as the rows of a codec: element (row, channel) is number place[row * dim + channel].
struct View {
  std::size_t rows = 0, dim = 0;
  std::vector<std::size_t> place;

  /// As they lie in memory.
  static View flat(std::size_t elements, std::size_t dim) {
    View view{elements / dim, dim, std::vector<std::size_t>(elements)};
    for (std::size_t i = 0; i < elements; ++i) view.place[i] = i;
    return view;
  }
  /// [heads, tokens, dim] as rows of one token each, its heads side by side.
  static View concatenated(const std::vector<std::size_t>& shape) {
    View view{shape[1], shape[0] * shape[2], {}};
    for (std::size_t t = 0; t < shape[1]; ++t)
      for (std::size_t h = 0; h < shape[0]; ++h)
        for (std::size_t c = 0; c < shape[2]; ++c) view.place.push_back((h * shape[1] + t) * shape[2] + c);
    return view;
  }
};

/// What a GroupQuant codec makes of a tensor, in the tensor's order: codes, and of every element its scale, its minimum and
/// what it reads back as.
struct GroupQuantized {
  std::vector<std::int32_t> codes;
  std::vector<float> scales, minima, decoded;

  GroupQuantized(const std::vector<float>& x, const View& view, const kvc::GroupQuant& format, kvc::Role role)
      : codes(x.size()), scales(x.size()), minima(x.size()), decoded(x.size()) {
    const kvc::GroupQuantCodec codec(format, role, view.dim);
    std::vector<float> rows(x.size());
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = x[view.place[i]];
    std::vector<std::byte> block(codec.block_bytes(view.rows));
    codec.encode({rows.data(), view.rows, view.dim}, block.data(), view.rows, 0);
    codec.decode(block.data(), view.rows, 0, {rows.data(), view.rows, view.dim});
    const auto* bytes = reinterpret_cast<const unsigned char*>(block.data());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::size_t row = i / view.dim, channel = i % view.dim;
      const auto [p, lane] = role == kvc::Role::key ? std::pair(channel, row) : std::pair(row, channel);
      const oracle::PackedElement element = oracle::packed_element(codec.layout(view.rows), bytes, p, lane);
      codes[view.place[i]] = static_cast<std::int32_t>(element.code);
      scales[view.place[i]] = element.scale;
      minima[view.place[i]] = element.minimum;
      decoded[view.place[i]] = rows[i];
    }
  }

  /// One number per group from one per element; group_of(element) is its place.
  template <class GroupOf>
  static std::vector<float> by_group(const std::vector<float>& by_element, std::size_t group, GroupOf group_of) {
    std::vector<float> out(by_element.size() / group);
    for (std::size_t i = 0; i < by_element.size(); ++i) out[group_of(i)] = by_element[i];
    return out;
  }
};

/// The `compare_rule` of the quant folder.
inline constexpr CodeRule OneInThousand{.share = 0.001};
/// Scales, minima and zero points have no tolerance of their own there: one or two roundings of a float.
inline constexpr Tolerance Rounded{.absolute = 1e-6, .relative = 1e-6};

/// Why the library cannot encode rows of `dim` in a format; empty if it can.
inline std::string refused(const kvc::GroupQuant& format, std::size_t dim) {
  try {
    format.validate(dim);
    return "";
  } catch (const kvc::Error& error) {
    return error.what();
  }
}

}  // namespace golden
