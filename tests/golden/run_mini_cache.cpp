#include <kvc/policies/mini_cache.hpp>

#include <algorithm>
#include <memory>

#include "golden/feeder.hpp"
#include "golden/runner.hpp"

namespace golden {
namespace {

/// What MiniCache makes of the keys of one head: of tokens that it shares the direction and both norms.
struct Merged {
  std::vector<float> direction, norm_below, norm_here;
  std::vector<std::int32_t> retained;
};

/// Merges as MiniCache does and writes it down, per head.
struct Watched {
  kvc::MiniCache policy;
  std::shared_ptr<std::vector<Merged>> seen;
  kvc::Member member = policy;

  std::span<const kvc::Member> members() const { return {&member, 1}; }
  bool pairs(std::size_t layer, const kvc::CacheShape& shape) const { return policy.pairs(layer, shape); }
  void merge(const kvc::Head<Watched>& below, const kvc::Head<Watched>& here, kvc::PairPlan& plan) const {
    member.stage().merge(below.member(0), here.member(0), plan);
    Merged& head = (*seen)[here.id.head];
    const std::size_t dim = here.shape->head_dim;
    head = {std::vector<float>(here.size() * dim), std::vector<float>(here.size()), std::vector<float>(here.size()),
            std::vector<std::int32_t>(here.size(), 1)};
    for (const kvc::PairPlan::Shared& row : plan.keys()) {
      std::ranges::copy(row.direction, head.direction.begin() + std::ptrdiff_t(row.slot * dim));
      head.norm_below[row.slot] = row.norm_below;
      head.norm_here[row.slot] = row.norm_here;
      head.retained[row.slot] = 0;
    }
  }
};

bool accepts(const Case& golden) {
  return golden.policy() == "minicache" && golden.has("x_prev") && golden.has("x_cur") && golden.has("q") &&
         golden.has("v");
}

/// A cache of two layers with a case's rows: x_prev and x_cur as keys, v as the values of both.
struct Pair {
  Pair(const Case& golden, const kvc::CacheShape& shape, const kvc::MiniCache& policy, std::size_t chunk)
      : seen(std::make_shared<std::vector<Merged>>(shape.kv_heads)), cache(shape, Watched{policy, seen}, in_float()) {
    const std::vector<float> keys[] = {golden.by_token("x_prev"), golden.by_token("x_cur")},
                             values = golden.by_token("v");
    const std::size_t width = shape.kv_heads * shape.head_dim, tokens = keys[0].size() / width;
    for (std::size_t begin = 0; begin < tokens; begin += chunk) {
      const std::size_t count = std::min(chunk, tokens - begin);
      for (std::size_t layer = 0; layer < 2; ++layer) {
        const kvc::ConstRows k(keys[layer].data() + begin * width, count, width);
        cache.prefill(layer, {.q = k, .k = k, .v = {values.data() + begin * width, count, width}}, {},
                      begin + count == tokens);
      }
    }
  }

  /// The keys of all heads of a layer, [heads, tokens, dim].
  std::vector<float> keys(std::uint32_t layer) const {
    const kvc::CacheShape& shape = cache.shape();
    std::vector<float> all;
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
      const std::size_t slots = cache.positions({layer, head}).size();
      std::vector<float> k(slots * shape.head_dim), v(slots * shape.values_dim());
      cache.gather({layer, head}, {k.data(), slots, shape.head_dim}, {v.data(), slots, shape.values_dim()});
      all.insert(all.end(), k.begin(), k.end());
    }
    return all;
  }
  std::vector<float> attention(std::size_t layer, std::span<const float> query) const {
    std::vector<float> out(query.size());
    cache.attend(layer, {query.data(), 1, query.size()}, {out.data(), 1, out.size()});
    return out;
  }
  template <class Member>
  auto of_heads(Member member) const {
    auto all = (*seen)[0].*member;
    for (std::size_t head = 1; head < seen->size(); ++head)
      all.insert(all.end(), ((*seen)[head].*member).begin(), ((*seen)[head].*member).end());
    return all;
  }

  std::shared_ptr<std::vector<Merged>> seen;
  kvc::KVCache<Watched> cache;
};

/// angle / pi of every pair of rows of `dim` floats.
std::vector<float> distances(std::span<const float> below, std::span<const float> here, std::size_t dim) {
  std::vector<float> all;
  for (std::size_t at = 0; at < below.size(); at += dim)
    all.push_back(static_cast<float>(kvc::compare_rows(below.subspan(at, dim), here.subspan(at, dim)).distance()));
  return all;
}

/// Where distances are equal several sets are right: those of the retained tokens must be the recorded ones'.
void compare_distances(const Case& golden, Check& check, std::span<const kvc::Position> slots, std::size_t head,
                       std::size_t retained) {
  const std::vector<float>& distance = golden.floats("angdist");
  const std::size_t tokens = golden.shape("angdist", 2)[1];
  std::vector<float> got, expected;
  for (const kvc::Position slot : slots) got.push_back(distance[head * tokens + std::size_t(slot)]);
  const std::vector<std::int32_t> recorded = golden.integers("retained_topk");
  for (std::size_t i = 0; i < retained; ++i)
    expected.push_back(distance[head * tokens + std::size_t(recorded[head * retained + i])]);
  check.multiset("retained_topk", head * retained, retained, got, expected,
                 {.absolute = golden.tensor("angdist").tolerance.value_or(0)});
}

void run(const Case& golden, Check& check) {
  const std::vector<std::size_t> shape_of_x = golden.shape("x_prev", 3);
  const std::size_t heads = shape_of_x[0], tokens = shape_of_x[1], dim = shape_of_x[2];
  const kvc::CacheShape shape{.layers = 2, .query_heads = heads, .kv_heads = heads, .head_dim = dim};
  const kvc::MiniCache defaults;
  const auto policy = [&](kvc::Retention retention) {
    return kvc::MiniCache{.t = golden.number("t", defaults.t),
                          .start = 0,
                          .retention = retention,
                          .gamma = golden.number("gamma", defaults.gamma),
                          .ratio = golden.number("retention_ratio", defaults.ratio)};
  };
  const std::vector<float> query = golden.by_token("q");

  every_way(check, tokens, [&](std::size_t chunk) {
    check.values("angdist", distances(golden.floats("x_prev"), golden.floats("x_cur"), dim));
    check.values("angdist_token", distances(golden.by_token("x_prev"), golden.by_token("x_cur"), heads * dim));

    const Pair merged(golden, shape, policy(kvc::Retention::none), chunk);
    check.values("direction", merged.of_heads(&Merged::direction));
    check.values("mag_prev", merged.of_heads(&Merged::norm_below));
    check.values("mag_cur", merged.of_heads(&Merged::norm_here));
    check.values("restored_prev_noretain", merged.keys(0));
    check.values("restored_cur_noretain", merged.keys(1));

    const Pair far(golden, shape, policy(kvc::Retention::far), chunk);
    check.integers("retained_far", far.of_heads(&Merged::retained));
    const Pair literal(golden, shape, policy(kvc::Retention::literal), chunk);
    check.integers("retained_literal", literal.of_heads(&Merged::retained));

    const Pair counted(golden, shape, policy(kvc::Retention::count), chunk);
    const std::size_t retained = golden.shape("retained_topk", 2)[1];
    for (std::size_t head = 0; head < heads; ++head) {
      std::vector<kvc::Position> slots;
      for (std::size_t slot = 0; slot < tokens; ++slot)
        if ((*counted.seen)[head].retained[slot]) slots.push_back(static_cast<kvc::Position>(slot));
      if (golden.tie_ambiguous())
        compare_distances(golden, check, slots, head, retained);
      else
        check.index_set("retained_topk", slots, head * retained, retained);
    }
    if (golden.tie_ambiguous()) {
      for (const char* name : {"restored_prev", "restored_cur", "attn_prev", "attn_cur"})
        check.not_compared(name, "several sets of tokens may be retained");
      return;
    }
    check.values("restored_prev", counted.keys(0));
    check.values("restored_cur", counted.keys(1));
    check.values("attn_prev", counted.attention(0, query));
    check.values("attn_cur", counted.attention(1, query));
  });
}

}  // namespace

extern const Runner MiniCacheRunner;
const Runner MiniCacheRunner{accepts, run};

}  // namespace golden
