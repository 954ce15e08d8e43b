// One file that uses the library header-only.
#include <kvc/kvc.hpp>

void decode_one(float* q, float* k, float* v, float* out) {
  kvc::KVCache cache(kvc::CacheShape{.head_dim = 64}, kvc::H2O{.budget = 16});
  cache.decode(0, {{q, 1, 64}, {k, 1, 64}, {v, 1, 64}}, {out, 1, 64});
}
