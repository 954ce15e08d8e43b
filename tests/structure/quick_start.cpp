// The program a newcomer copies: one include, a cache, a prompt, one token.
#include <cstdio>
#include <kvc/kvc.hpp>
#include <vector>

int main() {
  constexpr std::size_t Prompt = 1024, QueryHeads = 8, KVHeads = 2, HeadDim = 64;
  kvc::KVCache cache(kvc::CacheShape{.query_heads = QueryHeads, .kv_heads = KVHeads, .head_dim = HeadDim},
                     kvc::SnapKV{.budget = 256} | kvc::KIVI{.bits = 2});

  std::vector<float> q(Prompt * QueryHeads * HeadDim), k(Prompt * KVHeads * HeadDim), v(k.size()), out(q.size());
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(i % 7) - 3;
  for (std::size_t i = 0; i < k.size(); ++i) k[i] = static_cast<float>(i % 11) - 5;
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(i % 13) - 6;
  const auto rows = [](std::vector<float>& x, std::size_t count, std::size_t heads) {
    return kvc::Rows<float>(x.data(), count, heads * HeadDim);
  };
  cache.prefill(0, {rows(q, Prompt, QueryHeads), rows(k, Prompt, KVHeads), rows(v, Prompt, KVHeads)},
                rows(out, Prompt, QueryHeads));
  cache.decode(0, {rows(q, 1, QueryHeads), rows(k, 1, KVHeads), rows(v, 1, KVHeads)}, rows(out, 1, QueryHeads));

  std::printf("seen %zu tokens, compressed %.1f times\n", static_cast<std::size_t>(cache.stats().seen),
              static_cast<double>(cache.stats().ratio()));
}
