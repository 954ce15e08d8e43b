#pragma once
/// `{}` of fmt for the library's public types, and tables of what a cache holds; paid for only by who includes this.
#include <fmt/format.h>

#include <cstddef>
#include <string>
#include <variant>

#include "kvc/cache/core.hpp"
#include "kvc/format.hpp"
#include "kvc/policy/budget.hpp"

namespace kvc::inline KVC_ABI {

inline const char* name_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument:
      return "invalid_argument";
    case ErrorCode::shape_mismatch:
      return "shape_mismatch";
    case ErrorCode::impossible_budget:
      return "impossible_budget";
    case ErrorCode::non_finite:
      return "non_finite";
    case ErrorCode::missing_feed:
      return "missing_feed";
    case ErrorCode::unknown_name:
      return "unknown_name";
    case ErrorCode::incompatible:
      return "incompatible";
    case ErrorCode::bad_file:
      return "bad_file";
    case ErrorCode::out_of_memory:
      return "out_of_memory";
  }
  return "unknown";
}
inline const char* name_of(Scalar type) {
  return type == Scalar::f32 ? "f32" : type == Scalar::f16 ? "f16" : "bf16";
}
inline const char* name_of(Axis axis) {
  return axis == Axis::channel ? "channel" : "token";
}
inline const char* name_of(Event event) {
  switch (event) {
    case Event::prompt_chunk:
      return "prompt_chunk";
    case Event::prompt_end:
      return "prompt_end";
    case Event::decode:
      return "decode";
    case Event::probe:
      return "probe";
    case Event::make_room:
      return "make_room";
  }
  return "unknown";
}

/// A line per layer and one for the whole cache: slots, bytes by kind, and the ratio to fp16.
inline std::string stats_table(const CacheCore& cache) {
  std::string table = fmt::format("{:>6} {:>9} {:>9} {:>7} {:>12} {:>12} {:>12} {:>8}\n", "layer", "seen", "slots",
                                  "dead", "payload B", "metadata B", "slack B", "ratio");
  const auto line = [&](const std::string& name, const Stats& stats) {
    table += fmt::format("{:>6} {:>9} {:>9} {:>7} {:>12} {:>12} {:>12} {:>7.2f}x\n", name, stats.seen, stats.slots,
                         stats.dead, stats.payload, stats.metadata, stats.slack, stats.ratio());
  };
  for (std::size_t layer = 0; layer < cache.shape().layers; ++layer) line(std::to_string(layer), cache.stats(layer));
  line("all", cache.stats());
  return table;
}

}  // namespace kvc

template <>
struct fmt::formatter<kvc::ErrorCode> : fmt::formatter<fmt::string_view> {
  template <class Context>
  auto format(kvc::ErrorCode code, Context& context) const {
    return fmt::formatter<fmt::string_view>::format(kvc::name_of(code), context);
  }
};
template <>
struct fmt::formatter<kvc::Scalar> : fmt::formatter<fmt::string_view> {
  template <class Context>
  auto format(kvc::Scalar type, Context& context) const {
    return fmt::formatter<fmt::string_view>::format(kvc::name_of(type), context);
  }
};
template <>
struct fmt::formatter<kvc::Event> : fmt::formatter<fmt::string_view> {
  template <class Context>
  auto format(kvc::Event event, Context& context) const {
    return fmt::formatter<fmt::string_view>::format(kvc::name_of(event), context);
  }
};
template <>
struct fmt::formatter<kvc::Budget> : fmt::formatter<fmt::string_view> {
  template <class Context>
  auto format(const kvc::Budget& budget, Context& context) const {
    return fmt::formatter<fmt::string_view>::format(budget.to_string(), context);
  }
};

namespace kvc::inline KVC_ABI::detail {
/// Base of the formatters without options.
struct PlainFormatter {
  constexpr auto parse(fmt::format_parse_context& context) { return context.begin(); }
};
}  // namespace kvc::detail

template <>
struct fmt::formatter<kvc::HeadId> : kvc::detail::PlainFormatter {
  template <class Context>
  auto format(kvc::HeadId id, Context& context) const {
    return fmt::format_to(context.out(), "layer {} head {}", id.layer, id.head);
  }
};
template <>
struct fmt::formatter<kvc::Dense> : kvc::detail::PlainFormatter {
  template <class Context>
  auto format(const kvc::Dense& dense, Context& context) const {
    return fmt::format_to(context.out(), "{}", dense.type);
  }
};
template <>
struct fmt::formatter<kvc::GroupQuant> : kvc::detail::PlainFormatter {
  template <class Context>
  auto format(const kvc::GroupQuant& quant, Context& context) const {
    return fmt::format_to(context.out(), "{} bit per {}, groups of {}, {} metadata{}", quant.bits,
                          kvc::name_of(quant.axis), quant.group, quant.metadata,
                          quant.fit == kvc::Fit::min_max ? "" : fmt::format(", fit {}", kvc::name_of(quant.fit)));
  }
};
template <>
struct fmt::formatter<kvc::GgmlBlocks> : kvc::detail::PlainFormatter {
  template <class Context>
  auto format(const kvc::GgmlBlocks& blocks, Context& context) const {
    return fmt::format_to(context.out(), "ggml {}", kvc::block_size(blocks.type).name);
  }
};
template <>
struct fmt::formatter<kvc::CacheShape> : kvc::detail::PlainFormatter {
  template <class Context>
  auto format(const kvc::CacheShape& shape, Context& context) const {
    return fmt::format_to(context.out(), "{} layers, {} query heads over {} KV heads of {}", shape.layers,
                          shape.query_heads, shape.kv_heads, shape.head_dim);
  }
};
template <>
struct fmt::formatter<kvc::Stats> : kvc::detail::PlainFormatter {
  template <class Context>
  auto format(const kvc::Stats& stats, Context& context) const {
    return fmt::format_to(
        context.out(),
        "{} tokens seen, {} slots, {} bytes ({} payload, {} metadata, {} slack), {:.2f}x smaller than fp16", stats.seen,
        stats.slots, stats.bytes(), stats.payload, stats.metadata, stats.slack, stats.ratio());
  }
};
