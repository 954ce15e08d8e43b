#include <algorithm>
#include <cmath>

#include "golden/group_quantized.hpp"

namespace golden {
namespace {

using kvc::GroupQuant;

/// One query per head over keys and values that are given as codes, scales and minima.
bool accepts(const Case& golden) {
  return golden.policy() == "attention" && golden.has_parameter("bits") && golden.has_parameter("group") &&
         golden.word("scale", "") == "1/sqrt(D)" && golden.has("q") && golden.has("k_codes") && golden.has("v_codes");
}

GroupQuant format_of(const Case& golden, kvc::Role role) {
  return {.bits = static_cast<unsigned>(golden.count("bits")),
          .axis = role == kvc::Role::key ? kvc::Axis::channel : kvc::Axis::token,
          .group = golden.count("group"),
          .metadata = kvc::Scalar::f32};
}

std::string lacks(const Case& golden) {
  return refused(format_of(golden, kvc::Role::value), golden.tensor("v_codes").shape.back());
}

/// A head's keys or values in a block of the library's own: encoded from the values that the given codes stand for.
struct Encoded {
  kvc::GroupQuantCodec codec;
  std::vector<std::byte> block;

  Encoded(const Case& golden, Check& check, kvc::Role role, std::size_t head)
      : codec(format_of(golden, role), role, golden.tensor("k_codes").shape.back()) {
    const std::string side = role == kvc::Role::key ? "k" : "v";
    const std::size_t tokens = golden.shape(side + "_codes", 3)[1], dim = codec.dim(), group = golden.count("group");
    std::vector<float> rows(tokens * dim);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::size_t token = i / dim, channel = i % dim;
      const std::size_t at = role == kvc::Role::key ? (head * (tokens / group) + token / group) * dim + channel
                                                    : (head * tokens + token) * (dim / group) + channel / group;
      rows[i] = golden.floats(side + "_codes")[head * rows.size() + i] * golden.floats(side + "_scale").at(at) +
                golden.floats(side + "_min").at(at);
    }
    block.resize(codec.block_bytes(tokens));
    codec.encode({rows.data(), tokens, dim}, block.data(), tokens, 0);
    const GroupQuantized again(rows, View::flat(rows.size(), dim), codec.format(), role);
    const auto given = golden.floats(side + "_codes").begin() + std::ptrdiff_t(head * rows.size());
    if (!std::equal(again.codes.begin(), again.codes.end(), given,
                    [](std::int32_t code, float number) { return float(code) == number; }))
      check.fail(side + "_codes: encoding what they stand for gives other codes");
  }
};

void run(const Case& golden, Check& check) {
  const std::vector<std::size_t> q = golden.tensor("q").shape;
  const std::size_t dim = q.back(), group = golden.count("gqa"), tokens = golden.shape("k_codes", 3)[1];
  const std::size_t heads = golden.shape("k_codes", 3)[0];
  every_isa(check, [&] {
    for (std::size_t h = 0; h < heads; ++h) {
      const Encoded keys(golden, check, kvc::Role::key, h), values(golden, check, kvc::Role::value, h);
      std::vector<float> scores(group * tokens), out(group * dim);
      keys.codec.scores(keys.block.data(), tokens, 0, tokens, {golden.floats("q").data() + h * group * dim, group, dim},
                        {scores.data(), tokens});
      for (float& score : scores) score /= std::sqrt(static_cast<float>(dim));
      check.values("logits", scores, h * group * tokens);
      std::vector<float> maximum(group, -INFINITY), sum(group), correction(group);
      kvc::kernels::active().softmax_update(scores.data(), tokens, group, tokens, nullptr, maximum.data(), sum.data(),
                                            correction.data());
      values.codec.accumulate(values.block.data(), tokens, 0, tokens, {scores.data(), group, tokens},
                              {out.data(), dim});
      for (std::size_t i = 0; i < out.size(); ++i) out[i] /= sum[i / dim];
      check.values("out", out, h * group * dim);
    }
  });
}

}  // namespace

extern const Runner CodecAttentionRunner;
const Runner CodecAttentionRunner{accepts, run, lacks};

}  // namespace golden
