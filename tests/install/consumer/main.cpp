#include <cstdio>
#include <kvc/kvc.hpp>
#include <kvc/version.hpp>

int main() {
  kvc::KVCache cache(kvc::CacheShape{.head_dim = 64}, kvc::H2O{.budget = 16});
  std::printf("kvc %d.%d.%d: %zu tokens\n", KVC_VERSION_MAJOR, KVC_VERSION_MINOR, KVC_VERSION_PATCH,
              static_cast<std::size_t>(cache.stats().seen));
}
