// Another translation unit of the quick start's program, with other compiler flags.
#include <kvc/kvc.hpp>
#include <vector>

int cached_tokens() {
  kvc::KVCache cache(kvc::CacheShape{.head_dim = 64}, kvc::H2O{.budget = 16});
  std::vector<float> row(64, 1.0f), out(64);
  const kvc::Rows<float> one(row.data(), 1, 64);
  for (int step = 0; step < 2; ++step) cache.decode(0, {one, one, one}, {out.data(), 1, 64});
  return static_cast<int>(cache.stats().seen);
}
