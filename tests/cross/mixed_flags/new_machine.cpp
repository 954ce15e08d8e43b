// A file of the same program that uses the same parts of the library, built for newer processors and called on them
// only.
#include <kvc/kvc.hpp>
#include <string>
#include <vector>

std::string on_new_machines(std::vector<float> rows, std::size_t dim) {
  kvc::KVCache cache(kvc::CacheShape{.layers = 2, .head_dim = dim}, kvc::H2O{.budget = 32} | kvc::KIVI{.bits = 4});
  std::vector<float> out(rows.size());
  const std::size_t tokens = rows.size() / dim;
  const kvc::Rows<float> all(rows.data(), tokens, dim), one(rows.data(), 1, dim);
  try {
    cache.prefill(0, {all, all, all}, {out.data(), tokens, dim});
    cache.decode(0, {one, one, one}, {out.data(), 1, dim});
  } catch (const kvc::Error& error) {
    return error.what();
  }
  return std::to_string(cache.stats().seen);
}
