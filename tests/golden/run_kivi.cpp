#include <kvc/policies/kivi.hpp>

#include <cmath>

#include "golden/feeder.hpp"
#include "golden/runner.hpp"
#include "golden/sealed.hpp"

namespace golden {
namespace {

bool runs_cache(const Case& golden) {
  return golden.has("q") && golden.has("k") && golden.has("v") && golden.has_parameter("residual");
}
bool runs_quantizer(const Case& golden) {
  return golden.has("x") && golden.has("codes") && golden.has_parameter("bits");
}
bool accepts(const Case& golden) {
  return golden.policy() == "kivi" && (runs_cache(golden) || runs_quantizer(golden));
}

/// The quantized keys, or values, of a case, all as [heads, tokens, dim]: what went in, what the cache holds.
struct Quantized {
  std::size_t heads = 0, tokens = 0, dim = 0, group = 0;
  bool keys = false;  // groups run along the tokens, otherwise along the channels
  std::vector<float> x, decoded;
  SealedRows sealed;

  std::vector<std::size_t> group_shape() const {
    return keys ? std::vector{heads, tokens / group, dim} : std::vector{heads, tokens, dim / group};
  }
  /// The number of an element's scale, in a tensor of group_shape().
  std::size_t group_of(std::size_t element) const {
    const std::size_t channel = element % dim, token = element / dim % tokens, head = element / dim / tokens;
    return keys ? (head * (tokens / group) + token / group) * dim + channel
                : (head * tokens + token) * (dim / group) + channel / group;
  }
  /// One number per group, from one per element.
  std::vector<float> by_group(const std::vector<float>& by_element) const {
    const std::vector<std::size_t> shape = group_shape();
    std::vector<float> out(shape[0] * shape[1] * shape[2]);
    for (std::size_t i = 0; i < by_element.size(); ++i) out[group_of(i)] = by_element[i];
    return out;
  }
};

/// Where a case has the quantizer's results; `transposed`: [heads, dim, tokens], as the authors' cache keeps keys.
struct Names {
  std::string codes, scale, zero, dequant;
  bool transposed = false;
};

template <class T>
std::vector<T> as_stored(const std::vector<T>& in, std::vector<std::size_t> shape, bool transpose) {
  return transpose ? transposed<T>(in, shape[0], shape[1], shape[2]) : in;
}

/// 1 where the reference's own quotient lies so close to the middle of two levels that rounding may go either way.
std::vector<std::uint8_t> ties(const Case& golden, const Names& names, const Quantized& got) {
  std::vector<float> scale = golden.floats(names.scale), zero = golden.floats(names.zero);
  if (names.transposed) {
    const std::vector<std::size_t> shape = got.group_shape();
    scale = transposed<float>(scale, shape[0], shape[2], shape[1]);
    zero = transposed<float>(zero, shape[0], shape[2], shape[1]);
  }
  std::vector<std::uint8_t> flags(got.x.size());
  for (std::size_t i = 0; i < flags.size(); ++i) {
    const std::size_t g = got.group_of(i);
    const double quotient = (double(got.x[i]) - double(zero[g])) / double(scale[g]);
    flags[i] = std::abs(quotient - std::floor(quotient) - 0.5) < 1e-5;
  }
  return flags;
}

/// Compares codes, scales, minima and decoded values; returns where the codes may differ.
std::vector<std::uint8_t> compare(const Case& golden, Check& check, const Names& names, const Quantized& got) {
  const std::vector<std::size_t> shape{got.heads, got.tokens, got.dim};
  const std::vector<std::uint8_t> may_differ = as_stored(ties(golden, names, got), shape, names.transposed);
  const auto agree = check.codes(names.codes, as_stored(got.sealed.codes, shape, names.transposed),
                                 golden.integers(names.codes), {.ties = may_differ});
  check.values(names.scale, as_stored(got.by_group(got.sealed.scales), got.group_shape(), names.transposed));
  check.values(names.zero, as_stored(got.by_group(got.sealed.minima), got.group_shape(), names.transposed));
  check.values_where(names.dequant, as_stored(got.decoded, shape, names.transposed), agree);
  return may_differ;
}

/// Seals all keys, or all values, in KIVI's format, so that all of a quantizer's groups can be seen.
struct SealsEverything {
  kvc::KIVI kivi;
  bool keys = true;
  kvc::Streams quantize(kvc::HeadId id, const kvc::CacheShape& shape) const {
    kvc::Streams streams = kivi.quantize(id, shape);
    streams.key.batch = kivi.group;
    streams.value.recent = 0;
    (keys ? streams.value : streams.key) = {};
    return streams;
  }
};

/// The codes of words packed along the tokens or along the channels.
void compare_packed(const Case& golden, Check& check, const Quantized& got, unsigned bits,
                    std::span<const std::uint8_t> may_differ) {
  const CodeRule rule{.ties = may_differ};
  const auto [heads, tokens, dim] = std::tuple(got.heads, got.tokens, got.dim);
  if (golden.has("packed"))
    check.codes("packed", got.sealed.codes, unpacked(golden.integers("packed"), heads * tokens, dim, 1, bits), rule);
  if (golden.has("packed_tokens"))
    check.codes("packed_tokens", got.sealed.codes, unpacked(golden.integers("packed_tokens"), heads, tokens, dim, bits),
                rule);
  if (golden.has("packed_transposed")) {
    const auto codes = unpacked(golden.integers("packed_transposed"), heads * dim, tokens, 1, bits);
    check.codes("packed_transposed", got.sealed.codes, transposed<std::int32_t>(codes, heads, dim, tokens), rule);
  }
}

void run_quantizer(const Case& golden, Check& check) {
  const bool per_token = golden.word("axis", "").starts_with("per-token");
  const bool keys = golden.word("tensor", per_token ? "V" : "K") == "K";
  const auto bits = static_cast<unsigned>(golden.count("bits"));
  const SealsEverything policy{{.bits = bits, .group = golden.count("group"), .metadata = kvc::Scalar::f32}, keys};
  const Feeder feeder(golden, {"x", "x", "x"});
  const std::vector<std::size_t> shape = golden.shape("x", 3);

  every_way(check, feeder.tokens(), [&](std::size_t chunk) {
    kvc::KVCache cache(feeder.shape(), policy, in_float());
    feeder.prompt(cache, 0, feeder.tokens(), chunk);
    Quantized got{shape[0], shape[1], shape[2], policy.kivi.group, keys, golden.floats("x"), {}, {}};
    for (std::size_t h = 0; h < shape[0]; ++h) {
      got.sealed.append(keys ? sealed_rows(cache.key_rows(head_id(h)), kvc::Role::key, shape[1])
                             : sealed_rows(cache.value_rows(head_id(h)), kvc::Role::value, shape[1]));
      const HeadRows rows = gathered(cache, h);
      got.decoded.insert(got.decoded.end(), (keys ? rows.keys : rows.values).begin(),
                         (keys ? rows.keys : rows.values).end());
    }
    const auto may_differ = compare(golden, check, {"codes", "scale", "zero", "dequant"}, got);
    compare_packed(golden, check, got, bits, may_differ);
  });
}

/// Quantized and dense keys, then values, after a pass.
void compare_lengths(Check& check, const kvc::CacheCore& cache, std::size_t step) {
  for (std::size_t h = 0; h < cache.shape().kv_heads; ++h) {
    std::vector<std::int32_t> lengths;
    for (const kvc::RowStore* rows : {&cache.key_rows(head_id(h)), &cache.value_rows(head_id(h))}) {
      lengths.push_back(static_cast<std::int32_t>(rows->sealed_rows()));
      lengths.push_back(static_cast<std::int32_t>(rows->rows() - rows->sealed_rows()));
    }
    check.integers("state_lens", lengths, step * 4);
  }
}

/// One side of the cache at the end: what is sealed and what is dense.
void compare_side(const Case& golden, Check& check, const kvc::CacheCore& cache, bool keys, std::size_t group) {
  const std::string side = keys ? "k" : "v";
  const std::size_t heads = cache.shape().kv_heads, dim = golden.shape(side, 3)[2];
  const Names names{side + "_codes", side + "_scale", side + "_zero", side + "_dequant", keys};
  const std::size_t sealed = golden.shape(names.codes, 3)[keys ? 2 : 1];
  Quantized got{heads, sealed, dim, group, keys, {}, {}, {}};
  std::vector<float> dense;
  const std::vector<float>& x = golden.floats(side);
  const std::size_t tokens = x.size() / (heads * dim);
  for (std::size_t h = 0; h < heads; ++h) {
    got.sealed.append(keys ? sealed_rows(cache.key_rows(head_id(h)), kvc::Role::key, sealed)
                           : sealed_rows(cache.value_rows(head_id(h)), kvc::Role::value, sealed));
    const HeadRows both = gathered(cache, h);
    const std::vector<float>& rows = keys ? both.keys : both.values;
    const auto middle = rows.begin() + static_cast<std::ptrdiff_t>(sealed * dim);
    const auto first = x.begin() + static_cast<std::ptrdiff_t>(h * tokens * dim);
    got.x.insert(got.x.end(), first, first + static_cast<std::ptrdiff_t>(sealed * dim));
    got.decoded.insert(got.decoded.end(), rows.begin(), middle);
    dense.insert(dense.end(), middle, rows.end());
  }
  compare(golden, check, names, got);
  check.values(side + "_residual", dense);
}

void run_cache(const Case& golden, Check& check) {
  const Feeder feeder(golden, {});
  const std::size_t prompt = golden.count("prefill"), bits = golden.count("bits", 2);
  const kvc::KIVI policy{.key_bits = static_cast<unsigned>(golden.count("k_bits", bits)),
                         .value_bits = static_cast<unsigned>(golden.count("v_bits", bits)),
                         .group = golden.count("group"),
                         .residual = golden.count("residual"),
                         .metadata = kvc::Scalar::f32};

  every_way(check, prompt, [&](std::size_t chunk) {
    kvc::KVCache cache(feeder.shape(), policy, in_float());
    check.values("out_prefill", feeder.prompt(cache, 0, prompt, chunk));
    compare_lengths(check, cache, 0);
    for (std::size_t token = prompt; token < feeder.tokens(); ++token) {
      check.values("out_decode", feeder.step(cache, token), (token - prompt) * feeder.width());
      compare_lengths(check, cache, token - prompt + 1);
    }
    compare_side(golden, check, cache, true, policy.group);
    compare_side(golden, check, cache, false, policy.group);
  });
}

void run(const Case& golden, Check& check) {
  return runs_cache(golden) ? run_cache(golden, check) : run_quantizer(golden, check);
}

}  // namespace

extern const Runner KIVIRunner;
const Runner KIVIRunner{accepts, run};

}  // namespace golden
