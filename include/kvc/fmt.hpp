#pragma once
/// `{}` of fmt for the library's public types, and tables of what a cache holds; paid for only by who includes this.
#include <fmt/format.h>

#include <cstddef>
#include <string>
#include <tuple>
#include <variant>

#include "kvc/cache/core.hpp"
#include "kvc/format.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/policy/budget.hpp"
#include "kvc/policy/pipeline.hpp"

namespace kvc::inline KVC_ABI {

constexpr auto words_of(ErrorCode) {
  using enum ErrorCode;
  return words(word("invalid_argument", invalid_argument), word("shape_mismatch", shape_mismatch),
               word("impossible_budget", impossible_budget), word("non_finite", non_finite),
               word("missing_feed", missing_feed), word("unknown_name", unknown_name),
               word("incompatible", incompatible), word("bad_file", bad_file), word("out_of_memory", out_of_memory));
}
constexpr auto words_of(Event) {
  using enum Event;
  return words(word("prompt_chunk", prompt_chunk), word("prompt_end", prompt_end), word("decode", decode),
               word("probe", probe), word("make_room", make_room));
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

}  // namespace kvc::inline KVC_ABI

/// Enumerations by their words.
template <kvc::HasWords Enum>
struct fmt::formatter<Enum> : fmt::formatter<fmt::string_view> {
  template <class Context>
  auto format(Enum value, Context& context) const {
    return fmt::formatter<fmt::string_view>::format(kvc::name_of(value), context);
  }
};
/// Policies and pipelines as the texts that AnyPolicy::parse reads: "snapkv:budget=128,window=16 | kivi".
template <class P>
requires(kvc::HasName<P>&& kvc::HasParameters<P>) struct fmt::formatter<P> : fmt::formatter<fmt::string_view> {
  template <class Context>
  auto format(const P& policy, Context& context) const {
    return fmt::formatter<fmt::string_view>::format(kvc::policy_text(policy), context);
  }
};
template <class... Policies>
struct fmt::formatter<kvc::Pipeline<Policies...>> : fmt::formatter<fmt::string_view> {
  template <class Context>
  auto format(const kvc::Pipeline<Policies...>& pipeline, Context& context) const {
    std::string text;
    const auto append = [&](const auto& policy) { text += (text.empty() ? "" : " | ") + fmt::format("{}", policy); };
    std::apply([&](const auto&... policy) { (append(policy), ...); }, pipeline.policies);
    return fmt::formatter<fmt::string_view>::format(text, context);
  }
};
template <>
struct fmt::formatter<kvc::AnyPolicy> : fmt::formatter<fmt::string_view> {
  template <class Context>
  auto format(const kvc::AnyPolicy& policy, Context& context) const {
    return fmt::formatter<fmt::string_view>::format(policy.to_string(), context);
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
}  // namespace kvc::inline KVC_ABI::detail

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
