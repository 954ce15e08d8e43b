// refused: evict must be: void evict
#include <kvc/cache/kv_cache.hpp>

struct LostConst {
  kvc::Budget budget = 100;
  void evict(kvc::Head<LostConst>& head, kvc::Plan& plan) { plan.last(head.budget); }
};

void make() {
  kvc::KVCache cache({.head_dim = 64}, LostConst{});
}
