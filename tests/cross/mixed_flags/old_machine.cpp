// The file of the program with its main(): built for every x86-64 processor. With the argument "both" it calls the
// other file too, which needs a newer processor and may not be there.
#include <cstdio>
#include <kvc/kvc.hpp>
#include <string>
#include <vector>

[[gnu::weak]] std::string on_new_machines(std::vector<float> rows, std::size_t dim);

int main(int count, char**) {
  constexpr std::size_t Tokens = 200, Dim = 64;
  kvc::KVCache cache(kvc::CacheShape{.layers = 2, .head_dim = Dim}, kvc::H2O{.budget = 32} | kvc::KIVI{.bits = 4});
  std::vector<float> rows(Tokens * Dim), out(Tokens * Dim);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i % 11) - 5;
  const kvc::Rows<float> all(rows.data(), Tokens, Dim), one(rows.data(), 1, Dim);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    cache.prefill(layer, {all, all, all}, {out.data(), Tokens, Dim});
    for (int step = 0; step < 40; ++step) cache.decode(layer, {one, one, one}, {out.data(), 1, Dim});
  }
  try {
    cache.decode(7, {one, one, one}, {out.data(), 1, Dim});
    return 1;
  } catch (const kvc::Error& error) {
    std::puts(error.what());
  }
  std::printf("seen %zu tokens\n", static_cast<std::size_t>(cache.stats().seen));
  if (count > 1 && on_new_machines(rows, Dim) != "201") return 1;
}
