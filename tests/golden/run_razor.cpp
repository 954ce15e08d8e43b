#include <kvc/analysis/retrieval_heads.hpp>
#include <kvc/policies/full.hpp>
#include <kvc/policies/razor_attention.hpp>

#include <algorithm>

#include "golden/feeder.hpp"
#include "golden/runner.hpp"

namespace golden {
namespace {

using Compensation = kvc::RazorAttention::Compensation;

bool accepts(const Case& golden) {
  const std::string variant = golden.variant();
  return golden.policy() == "razor" &&
         ((variant == "head_scores" && golden.count("bos", 1) == 1) || variant == "head_selection" ||
          variant == "vendor_deploy_compress" || variant == "paper_algorithm1");
}

std::vector<std::int32_t> as_integers(std::span<const std::uint8_t> flags) {
  return {flags.begin(), flags.end()};
}

/// The heads chosen by each score, over KV heads, and those chosen by either.
void check_selection(const Case& golden, Check& check, const kvc::HeadScores& scores) {
  const kvc::RetrievalShares shares{.induction = golden.number("induction_ratio", 0.14),
                                    .echo = golden.number("echo_ratio", 0.01)};
  const std::size_t group = scores.query_heads / scores.kv_heads;
  const auto select = [&](const std::vector<float>& all, double share) {
    return as_integers(kvc::select_heads(kvc::best_of_groups(all, group), share));
  };
  check.integers("selected_induction", select(scores.induction, shares.induction));
  check.integers("selected_echo", select(scores.echo, shares.echo));
  const kvc::HeadTable table = kvc::retrieval_heads(scores, shares);
  std::vector<std::int32_t> retrieval;
  for (std::uint32_t layer = 0; layer < table.layers(); ++layer)
    for (std::uint32_t head = 0; head < table.kv_heads(); ++head) retrieval.push_back(table.retrieves({layer, head}));
  check.integers("retrieval", retrieval);
}

/// One layer of a tensor [layers, heads, tokens, dim] as [tokens, heads * dim].
std::vector<float> layer_by_token(const std::vector<float>& all, const std::vector<std::size_t>& shape,
                                  std::size_t layer) {
  const std::size_t heads = shape[1], tokens = shape[2], dim = shape[3];
  std::vector<float> out(heads * tokens * dim);
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t t = 0; t < tokens; ++t)
      std::copy_n(all.data() + ((layer * heads + h) * tokens + t) * dim, dim, out.data() + (t * heads + h) * dim);
  return out;
}

void run_scores(const Case& golden, Check& check) {
  const std::vector<std::size_t> q = golden.shape("q", 4), k = golden.shape("k", 4);
  const kvc::CacheShape shape{.layers = q[0], .query_heads = q[1], .kv_heads = k[1], .head_dim = q[3]};
  every_isa(check, [&] {
    kvc::HeadScorer scorer(shape, {.block = golden.count("block"), .repeats = golden.count("repeats")});
    for (std::size_t layer = 0; layer < shape.layers; ++layer) {
      const std::vector<float> queries = layer_by_token(golden.floats("q"), q, layer),
                               keys = layer_by_token(golden.floats("k"), k, layer);
      scorer.add(layer, {queries.data(), q[2], q[1] * q[3]}, {keys.data(), k[2], k[1] * k[3]});
    }
    check.values("induction", scorer.scores().induction);
    check.values("echo", scorer.scores().echo);
    check_selection(golden, check, scorer.scores());
  });
}

/// Scores are given per KV head.
void run_selection(const Case& golden, Check& check) {
  const std::vector<std::size_t> shape = golden.shape("induction", 2);
  every_isa(check, [&] {
    check_selection(golden, check,
                    {.layers = shape[0],
                     .query_heads = shape[1],
                     .kv_heads = shape[1],
                     .echo = golden.floats("echo"),
                     .induction = golden.floats("induction")});
  });
}

/// Keys and values of a case as a prompt, and queries that come after it. The prompt's own queries do not matter.
class Compressed {
 public:
  explicit Compressed(const Case& golden)
      : queries_(golden.by_token("q")), keys_(golden.by_token("k")), values_(golden.by_token("v")) {
    const std::vector<std::size_t> q = golden.shape("q", 3), k = golden.shape("k", 3), v = golden.shape("v", 3);
    shape_ = {.query_heads = q[0], .kv_heads = k[0], .head_dim = k[2], .value_dim = v[2]};
    query_tokens_ = q[1];
    tokens_ = k[1];
  }

  const kvc::CacheShape& shape() const { return shape_; }
  std::size_t tokens() const { return tokens_; }

  void feed(kvc::CacheCore& cache, std::size_t chunk) const {
    const std::size_t query = shape_.query_heads * shape_.head_dim, key = shape_.kv_heads * shape_.head_dim,
                      value = shape_.kv_heads * shape_.values_dim();
    const std::vector<float> nothing(tokens_ * query);
    for (std::size_t begin = 0; begin < tokens_; begin += chunk) {
      const std::size_t count = std::min(chunk, tokens_ - begin);
      cache.prefill(0,
                    {{nothing.data(), count, query},
                     {keys_.data() + begin * key, count, key},
                     {values_.data() + begin * value, count, value}},
                    {}, begin + count == tokens_);
    }
  }
  /// What all queries get, [query_heads, queries, dim].
  std::vector<float> attend(const kvc::CacheCore& cache) const {
    const std::size_t width = shape_.query_heads * shape_.values_dim();
    std::vector<float> out(query_tokens_ * width);
    cache.attend(0, {queries_.data(), query_tokens_, shape_.query_heads * shape_.head_dim},
                 {out.data(), query_tokens_, width});
    return by_head(out, shape_.query_heads, shape_.values_dim());
  }

 private:
  std::vector<float> queries_, keys_, values_;
  kvc::CacheShape shape_;
  std::size_t query_tokens_ = 0, tokens_ = 0;
};

void run_vendor(const Case& golden, Check& check) {
  const Compressed prompt(golden);
  const kvc::RazorAttention policy{
      .heads = kvc::HeadTable{},
      .sinks = golden.count("sink_size", 4),
      .budget = golden.count("local_capacity", 256),
      .compensation = golden.flag("use_virtual_token", true) ? Compensation::unweighted : Compensation::none,
      .when = kvc::When::prompt_end};
  every_way(check, prompt.tokens(), [&](std::size_t chunk) {
    kvc::KVCache cache(prompt.shape(), policy, in_float());
    prompt.feed(cache, chunk);
    for (std::size_t h = 0, keys = 0, values = 0; h < prompt.shape().kv_heads; ++h) {
      const HeadRows rows = gathered(cache, h);
      check.values("k_comp", rows.keys, keys);
      check.values("v_comp", rows.values, values);
      keys += rows.keys.size();
      values += rows.values.size();
    }
    check.values("attn_unweighted", prompt.attend(cache));
  });
}

/// The compensation token of each head: in the slot behind the sinks where tokens went, zeros elsewhere.
void check_compensation(const Case& golden, Check& check, const kvc::CacheCore& cache, const kvc::HeadTable& table) {
  const std::size_t dim = cache.shape().head_dim, value_dim = cache.shape().values_dim();
  const std::size_t sinks = golden.count("sink");
  for (std::size_t h = 0; h < cache.shape().kv_heads; ++h) {
    std::vector<float> key(dim), value(value_dim);
    if (golden.count("dropped") != 0 && !table.retrieves(head_id(h))) {
      const HeadRows rows = gathered(cache, h);
      std::copy_n(rows.keys.begin() + std::ptrdiff_t(sinks * dim), dim, key.begin());
      std::copy_n(rows.values.begin() + std::ptrdiff_t(sinks * value_dim), value_dim, value.begin());
    }
    check.values("k_hat", key, h * dim);
    check.values("v_hat", value, h * value_dim);
  }
}

void run_paper(const Case& golden, Check& check) {
  const Compressed prompt(golden);
  std::vector<std::uint8_t> flags(prompt.shape().kv_heads);
  for (const std::size_t head : golden.parameter("retrieval_kv_heads").get<std::vector<std::size_t>>()) flags.at(head) = 1;
  const kvc::HeadTable table(1, flags.size(), flags);
  const auto policy = [&](Compensation compensation) {
    return kvc::RazorAttention{.heads = table,
                               .sinks = golden.count("sink", 4),
                               .local = golden.count("S0", 4000),
                               .divisor = golden.count("C", 5),
                               .compensation = compensation};
  };
  every_way(check, prompt.tokens(), [&](std::size_t chunk) {
    kvc::KVCache cache(prompt.shape(), policy(Compensation::weighted), in_float());
    prompt.feed(cache, chunk);
    check_compensation(golden, check, cache, table);
    check.values("out", prompt.attend(cache));
    // The manifest states the tolerance of `out` only.
    const Tolerance tolerance{.absolute = golden.tensor("out").tolerance.value_or(0)};
    if (golden.has("out_weight1")) {
      kvc::KVCache unweighted(prompt.shape(), policy(Compensation::unweighted), in_float());
      prompt.feed(unweighted, chunk);
      check.values("out_weight1", prompt.attend(unweighted), 0, tolerance);
    }
    if (golden.has("out_full")) {
      kvc::KVCache full(prompt.shape(), kvc::Full{}, in_float());
      prompt.feed(full, chunk);
      check.values("out_full", prompt.attend(full), 0, tolerance);
    }
  });
}

void run(const Case& golden, Check& check) {
  const std::string variant = golden.variant();
  if (variant == "head_scores") return run_scores(golden, check);
  if (variant == "head_selection") return run_selection(golden, check);
  if (variant == "vendor_deploy_compress") return run_vendor(golden, check);
  run_paper(golden, check);
}

}  // namespace

extern const Runner RazorRunner;
const Runner RazorRunner{accepts, run};

}  // namespace golden
