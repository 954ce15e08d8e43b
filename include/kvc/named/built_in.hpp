#pragma once
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvc/policies/ada_kv.hpp"
#include "kvc/policies/external_scores.hpp"
#include "kvc/policies/full.hpp"
#include "kvc/policies/h2o.hpp"
#include "kvc/policies/h2o_mask.hpp"
#include "kvc/policies/kivi.hpp"
#include "kvc/policies/knorm.hpp"
#include "kvc/policies/mini_cache.hpp"
#include "kvc/policies/quest.hpp"
#include "kvc/policies/razor_attention.hpp"
#include "kvc/named/registry.hpp"
#include "kvc/policies/snapkv.hpp"
#include "kvc/policies/streaming_llm.hpp"

namespace kvc::inline KVC_ABI {

template <>
struct EnumWords<Scalar> {
  static constexpr std::array Words{std::pair{"f32", Scalar::f32}, std::pair{"f16", Scalar::f16},
                                    std::pair{"bf16", Scalar::bf16}};
};
template <>
struct EnumWords<Fit> {
  static constexpr std::array Words{std::pair{name_of(Fit::min_max), Fit::min_max},
                                    std::pair{name_of(Fit::whole_zero), Fit::whole_zero},
                                    std::pair{name_of(Fit::half_quadratic), Fit::half_quadratic}};
};
/// A type of ggml by the name it has there.
constexpr std::pair<const char*, GgmlType> word_of(GgmlType type) {
  return {block_size(type).name, type};
}
template <>
struct EnumWords<GgmlType> {
  static constexpr std::array Words{word_of(GgmlType::q4_0),  word_of(GgmlType::q4_1), word_of(GgmlType::q5_0),
                                    word_of(GgmlType::q5_1),  word_of(GgmlType::q8_0), word_of(GgmlType::iq4_nl),
                                    word_of(GgmlType::mxfp4), word_of(GgmlType::nvfp4)};
};
template <>
struct EnumWords<Positions> {
  static constexpr std::array Words{std::pair{"original", Positions::original},
                                    std::pair{"in_cache", Positions::in_cache}};
};
template <>
struct EnumWords<Reduce> {
  static constexpr std::array Words{std::pair{"sum", Reduce::sum}, std::pair{"mean", Reduce::mean},
                                    std::pair{"max", Reduce::max}};
};
template <>
struct EnumWords<Pooling> {
  static constexpr std::array Words{std::pair{"average", Pooling::average}, std::pair{"max", Pooling::max}};
};
template <>
struct EnumWords<SnapKV::Order> {
  static constexpr std::array Words{std::pair{"before_pooling", SnapKV::Order::before_pooling},
                                    std::pair{"after_pooling", SnapKV::Order::after_pooling}};
};
template <>
struct EnumWords<H2O::When> {
  static constexpr std::array Words{std::pair{"always", H2O::When::always},
                                    std::pair{"prompt_end", H2O::When::prompt_end}};
};
template <>
struct EnumWords<StreamingLLM::When> {
  static constexpr std::array Words{std::pair{"every_pass", StreamingLLM::When::every_pass},
                                    std::pair{"make_room", StreamingLLM::When::make_room}};
};
template <>
struct EnumWords<RazorAttention::Compensation> {
  static constexpr std::array Words{std::pair{"weighted", RazorAttention::Compensation::weighted},
                                    std::pair{"unweighted", RazorAttention::Compensation::unweighted},
                                    std::pair{"none", RazorAttention::Compensation::none}};
};
template <>
struct EnumWords<RazorAttention::When> {
  static constexpr std::array Words{std::pair{"always", RazorAttention::When::always},
                                    std::pair{"prompt_end", RazorAttention::When::prompt_end}};
};
template <>
struct EnumWords<Retention> {
  static constexpr std::array Words{std::pair{"far", Retention::far}, std::pair{"literal", Retention::literal},
                                    std::pair{"count", Retention::count}, std::pair{"none", Retention::none}};
};
template <>
struct EnumWords<Safeguard> {
  static constexpr std::array Words{std::pair{"interpolate", Safeguard::interpolate},
                                    std::pair{"minimum", Safeguard::minimum}};
};

/// `budget=1024`, `budget=0.25` and `keep=0.25` of a policy with a Budget.
template <class P>
std::vector<Parameter<P>> budget_parameters(std::string help) {
  Parameter<P> keep{.name = "keep",
                    .help = "the fraction kept, instead of budget",
                    .expected = "a number in (0, 1]",
                    .set =
                        [](P& policy, std::string_view text) {
                          const auto kept = TextOf<double>::read(text);
                          if (!kept || *kept <= 0 || *kept > 1) return false;
                          policy.budget = Budget::fraction(*kept);
                          return true;
                        },
                    .get = [](const P&) { return std::string("unset"); },
                    .sets_budget = true};
  return {parameter("budget", &P::budget, std::move(help)), std::move(keep)};
}

/// `pyramid=20` turns a budget into one that falls over the layers; `window_of` says which slots every layer keeps.
template <class P, class WindowOf>
Parameter<P> pyramid_parameter(WindowOf window_of) {
  return {.name = "pyramid",
          .help = "budgets that fall over the layers, with the budget as their mean (PyramidKV); the value is beta",
          .expected = "a number of at least 1, 20 if left out",
          .set =
              [window_of](P& policy, std::string_view text) {
                const auto beta = text.empty() ? std::optional<double>(20) : TextOf<double>::read(text);
                if (!beta || *beta < 1) return false;
                policy.budget = Budget::pyramid(policy.budget, window_of(policy), *beta);
                return true;
              },
          .get = [](const P&) { return std::string("unset"); }};
}

inline std::vector<Parameter<Full>> parameters_of(const Full&) {
  return {parameter("type", &Full::type, "element type of dense rows; unset: the cache's own"),
          parameter("bits", &Full::bits, "8, 4, 3 or 2: quantize every token at once; 0: dense"),
          parameter("group", &Full::group, "channels that share a scale when quantized"),
          parameter("fit", &Full::fit, "of the minimum of such a group"),
          parameter("ggml", &Full::ggml, "quantize every token at once to a cache type of llama.cpp"),
          parameter("value_ggml", &Full::value_ggml, "of values, where they differ")};
}

inline std::vector<Parameter<StreamingLLM>> parameters_of(const StreamingLLM&) {
  auto all = budget_parameters<StreamingLLM>("sinks + recent tokens");
  all.push_back(parameter("sinks", &StreamingLLM::sinks, "first tokens that always stay"));
  all.push_back({.name = "recent",
                 .help = "newest tokens that stay, instead of budget",
                 .expected = "a whole number",
                 .set =
                     [](StreamingLLM& policy, std::string_view text) {
                       const auto recent = TextOf<std::size_t>::read(text);
                       if (recent) policy.budget = policy.sinks + *recent;
                       return recent.has_value();
                     },
                 .get = [](const StreamingLLM&) { return std::string("unset"); },
                 .sets_budget = true});
  all.push_back(parameter("positions", &StreamingLLM::positions, "where kept tokens stand for the rotary embedding"));
  all.push_back(parameter("when", &StreamingLLM::when, "evict after every pass, or when the engine announces tokens"));
  return all;
}

inline std::vector<Parameter<H2O>> parameters_of(const H2O&) {
  auto all = budget_parameters<H2O>("heavy + recent slots");
  all.push_back(parameter("recent", &H2O::recent, "newest slots that always stay; unset: half of the budget"));
  all.push_back(parameter("reduce", &H2O::reduce, "over the query heads of a group"));
  all.push_back(parameter("normalize", &H2O::normalize, "rank by mean attention instead of its sum"));
  all.push_back(parameter("when", &H2O::when, "evict after every pass, or once after the prompt"));
  all.push_back(parameter("positions", &H2O::positions, "where kept tokens stand for the rotary embedding"));
  return all;
}

inline std::vector<Parameter<H2OMask>> parameters_of(const H2OMask&) {
  return {parameter("heavy_ratio", &H2OMask::heavy_ratio, "heavy tokens, as a share of the first prompt"),
          parameter("recent_ratio", &H2OMask::recent_ratio, "recent tokens, as a share of the first prompt")};
}

inline std::vector<Parameter<SnapKV>> parameters_of(const SnapKV&) {
  auto all = budget_parameters<SnapKV>("slots after the prompt, the window included");
  all.push_back(parameter("window", &SnapKV::window, "newest queries that vote and tokens that stay"));
  all.push_back(parameter("kernel", &SnapKV::kernel, "tokens over which votes are pooled; odd"));
  all.push_back(parameter("pooling", &SnapKV::pooling, "of the votes along the tokens"));
  all.push_back(parameter("reduce", &SnapKV::reduce, "over the query heads of a group"));
  all.push_back(parameter("order", &SnapKV::order, "whether groups are reduced before or after pooling"));
  all.push_back(pyramid_parameter<SnapKV>([](const SnapKV& policy) { return policy.window; }));
  return all;
}

inline std::vector<Parameter<Knorm>> parameters_of(const Knorm&) {
  auto all = budget_parameters<Knorm>("slots after the prompt");
  all.push_back(pyramid_parameter<Knorm>([](const Knorm&) { return std::size_t{0}; }));
  return all;
}

inline std::vector<Parameter<ExternalScores>> parameters_of(const ExternalScores&) {
  auto all = budget_parameters<ExternalScores>("slots a head may hold");
  all.push_back(parameter("recent", &ExternalScores::recent, "newest slots that always stay"));
  all.push_back(parameter("chunks", &ExternalScores::chunks, "also evict after each chunk of a prompt"));
  all.push_back(parameter("decoding", &ExternalScores::decoding, "also evict after each generated token"));
  all.push_back(parameter("positions", &ExternalScores::positions, "where kept tokens stand for the rotary embedding"));
  return all;
}

/// `local` sets the budget by the paper's rule, so that a default budget does not replace it.
inline std::vector<Parameter<RazorAttention>> parameters_of(const RazorAttention&) {
  auto all = budget_parameters<RazorAttention>("slots of a compressed head; a fraction is of the whole cache");
  all.push_back({.name = "heads",
                 .help = "the model's retrieval heads, made by `analyze heads`; none: compress every head",
                 .expected = "the file of a head table, or none",
                 .set =
                     [](RazorAttention& policy, std::string_view text) {
                       if (text.empty()) return false;
                       policy.heads = text == "none" ? HeadTable{} : HeadTable::load(std::string(text));
                       return true;
                     },
                 .get = [](const RazorAttention&) { return std::string("unset"); }});
  all.push_back(parameter("local", &RazorAttention::local, "newest tokens that stay at least, instead of budget"));
  all.back().sets_budget = true;
  all.push_back(parameter("divisor", &RazorAttention::divisor, "beside local: seen / divisor stay if more; 0: never"));
  all.push_back(parameter("sinks", &RazorAttention::sinks, "first tokens that always stay"));
  all.push_back(parameter("compensation", &RazorAttention::compensation, "weight of the mean of what went"));
  all.push_back(parameter("when", &RazorAttention::when, "compress after every pass, or once after a prompt"));
  return all;
}

inline std::vector<Parameter<KIVI>> parameters_of(const KIVI&) {
  return {parameter("bits", &KIVI::bits, "2, 3, 4 or 8"),
          parameter("key_bits", &KIVI::key_bits, "of keys, where they differ"),
          parameter("value_bits", &KIVI::value_bits, "of values, where they differ"),
          parameter("group", &KIVI::group, "elements that share a scale"),
          parameter("residual", &KIVI::residual, "newest tokens kept dense; a multiple of group"),
          parameter("metadata", &KIVI::metadata, "type of scales and minima: f16 or f32"),
          parameter("sinks", &KIVI::sinks, "first slots kept dense; 5 behind razor_attention")};
}

/// Pairs of layers as `15-16+17-18`.
template <>
struct TextOf<std::vector<LayerPair>> {
  static std::string expected() { return "pairs of layers, as in 15-16+17-18"; }
  static std::optional<std::vector<LayerPair>> read(std::string_view text) {
    std::vector<LayerPair> pairs;
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = std::min(text.find('+', begin), text.size());
      const std::string_view pair = text.substr(begin, end - begin);
      const std::size_t dash = std::min(pair.find('-'), pair.size());
      const auto below = TextOf<std::size_t>::read(pair.substr(0, dash));
      const auto above = TextOf<std::size_t>::read(pair.substr(std::min(dash + 1, pair.size())));
      if (!below || !above) return std::nullopt;
      pairs.push_back({*below, *above});
      begin = end + 1;
    }
    return pairs;
  }
  static std::string write(const std::vector<LayerPair>& pairs) {
    if (pairs.empty()) return "unset";
    std::string text;
    for (const auto& [below, above] : pairs)
      text += (text.empty() ? "" : "+") + std::to_string(below) + "-" + std::to_string(above);
    return text;
  }
};
inline std::vector<Parameter<MiniCache>> parameters_of(const MiniCache&) {
  return {parameter("t", &MiniCache::t, "of a direction: 0 is the lower layer's, 1 the upper one's"),
          parameter("start", &MiniCache::start, "depth of the first pair, as a fraction of the layers"),
          parameter("pairs", &MiniCache::chosen, "the layers to merge, instead of all from start on"),
          parameter("retention", &MiniCache::retention, "which tokens stay as they are"),
          parameter("gamma", &MiniCache::gamma, "of far and literal: share of the range of distances retained"),
          parameter("ratio", &MiniCache::ratio, "of count: share of the tokens retained")};
}

inline std::vector<Parameter<Quest>> parameters_of(const Quest&) {
  return {parameter("tokens", &Quest::tokens, "that a step attends to, in whole pages"),
          parameter("page", &Quest::page, "tokens per page"),
          parameter("dense_layers", &Quest::dense_layers, "first layers that attend to everything"),
          parameter("reduce", &Quest::reduce, "over the query heads of a group")};
}

/// The decorator's own, and its base's except the budget, which the decorator replaces.
template <class Base>
std::vector<Parameter<AdaKV<Base>>> parameters_of(const AdaKV<Base>&) {
  using P = AdaKV<Base>;
  auto all = budget_parameters<P>("average slots per head of a layer");
  all.push_back(parameter("floor_alpha", &P::floor_alpha, "share of the budget not up for competition"));
  all.push_back(parameter("safeguard", &P::safeguard, "interpolate (the authors') or minimum (kvpress)"));
  for (const Parameter<Base>& own : parameters_of(Base{})) {
    if (own.sets_budget || own.name == "pyramid") continue;
    all.push_back({own.name, own.help, own.expected,
                   [set = own.set](P& policy, std::string_view text) { return set(policy.base, text); },
                   [get = own.get](const P& policy) { return get(policy.base); }});
  }
  all.push_back(pyramid_parameter<P>([](const P& policy) {
    if constexpr (requires { policy.base.window; }) return policy.base.window;
    return std::size_t{0};
  }));
  return all;
}

/// Adds policy P under a name; decorators name their base too.
template <class P>
void add_to(Registry& registry, std::string name, std::string help, std::string base = "") {
  registry.add(
      std::make_unique<EntryOf<P>>(EntryName{std::move(name), std::move(base), std::move(help)}, parameters_of(P{})));
}

/// The registry, with every policy of the library in it.
inline Registry& policies() {
  static Registry& registry = *[] {
    auto* all = new Registry;  // never destroyed: caches in static storage may outlive anything
    add_to<Full>(*all, "full", "keeps every token, dense or quantized");
    add_to<StreamingLLM>(*all, "streaming_llm", "the first tokens and the newest ones");
    add_to<H2O>(*all, "h2o", "the tokens with the most accumulated attention and the newest ones");
    add_to<H2OMask>(*all, "h2o_mask", "h2o as its authors simulate it: masks tokens, drops none, saves nothing");
    add_to<SnapKV>(*all, "snapkv", "the tokens that the prompt's last queries attend to");
    add_to<Knorm>(*all, "knorm", "the tokens whose keys have the lowest norm");
    add_to<ExternalScores>(*all, "external_scores", "the tokens that the engine scores highest");
    add_to<KIVI>(*all, "kivi", "quantizes keys per channel and values per token");
    add_to<RazorAttention>(*all, "razor_attention",
                           "every token of retrieval heads, a window and a mean of the others");
    add_to<MiniCache>(*all, "mini_cache", "lets adjacent layers share the directions of their keys and values");
    add_to<Quest>(*all, "quest", "keeps every token, attends to the pages that could answer best");
    const std::string ada = "budgets that the heads of a layer compete for by the scores of base";
    add_to<AdaKV<SnapKV>>(*all, "ada_kv", ada, "snapkv");
    add_to<AdaKV<H2O>>(*all, "ada_kv", ada, "h2o");
    add_to<AdaKV<Knorm>>(*all, "ada_kv", ada, "knorm");
    add_to<AdaKV<ExternalScores>>(*all, "ada_kv", ada, "external_scores");
    return all;
  }();
  return registry;
}

}  // namespace kvc
