#include "catch_shim.hpp"

#include <sys/mman.h>

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvc/policies/all.hpp"
#include "kvc/storage/row_store.hpp"
#include "support/all_policies.hpp"
#include "support/fake_head.hpp"
#include "support/session_bytes.hpp"
#include "support/twins.hpp"

// Sessions whose bytes several readers use: caches that read rows where a file is mapped, forks that were saved together.

using namespace kvc;
using namespace support;

namespace {

const CacheShape Shape = small_shape();

/// A session in pages that nobody can write to, as those of a file that is mapped for reading.
SessionInMemory mapped(const Bytes& session) {
  const std::size_t size = session.size();
  if (size == 0) return {};
  void* const pages = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(pages != MAP_FAILED);
  std::memcpy(pages, session.data(), size);
  REQUIRE(::mprotect(pages, size, PROT_READ) == 0);
  return {.bytes = {static_cast<const std::byte*>(pages), size},
          .owner = std::shared_ptr<const void>(pages, [size](void* at) { ::munmap(at, size); })};
}

bool lies_in(const Segment& segment, std::span<const std::byte> bytes) {
  return segment.block->data() >= bytes.data() && segment.block->data() < bytes.data() + bytes.size();
}
/// How many segments of the cache lie in these bytes, and how many there are.
std::pair<std::size_t, std::size_t> segments_in(const CacheCore& cache, std::span<const std::byte> bytes) {
  std::pair<std::size_t, std::size_t> found{0, 0};
  for (const HeadId id : Sequence::heads(cache.shape()))
    for (const RowStore* rows : {&cache.key_rows(id), &cache.value_rows(id)})
      for (const Segment& segment : rows->segments()) {
        found.first += lies_in(segment, bytes);
        ++found.second;
      }
  return found;
}

std::vector<const CacheCore*> pointers(const std::vector<CacheCore>& caches) {
  std::vector<const CacheCore*> list;
  for (const CacheCore& cache : caches) list.push_back(&cache);
  return list;
}
std::vector<CacheCore*> pointers(std::vector<CacheCore>& caches) {
  std::vector<CacheCore*> list;
  for (CacheCore& cache : caches) list.push_back(&cache);
  return list;
}
/// An empty cache and forks of it.
std::vector<CacheCore> empty_forks(const Stages& stages, std::size_t count) {
  std::vector<CacheCore> caches;
  caches.emplace_back(Shape, stages);
  while (caches.size() < count) caches.push_back(caches.front().fork());
  return caches;
}

}  // namespace

TEST_CASE("Every policy goes on from a mapped session without copying a block, and writes to none", "[session]") {
  const LayeredTokens text(Shape, 300, 71);
  for (const PolicyCase& entry : all_policies()) {
    INFO(entry.text);
    KVCache cache(Shape, entry.policy()), loaded(Shape, entry.policy());
    feed(cache, text, 100, 30);
    const Bytes session = saved(cache);
    const SessionInMemory memory = mapped(session);
    CHECK(load(loaded, memory) == session.size());
    const auto [lent, all] = segments_in(loaded, memory.bytes);
    CHECK(lent == all);
    CHECK(difference({picture_of(loaded)}, {picture_of(cache)}) == "");
    CHECK((saved(loaded) == session));
    check_same_future(loaded, cache, text, 130);
    CHECK((Bytes(memory.bytes.begin(), memory.bytes.end()) == session));
  }
}

TEST_CASE("A mapped session is kept until the last fork that reads it is gone", "[session]") {
  const LayeredTokens text(Shape, 200, 79);
  KVCache cache(Shape, KIVI{.group = 16, .residual = 16});
  feed(cache, text, 100, 10);
  const Bytes session = saved(cache);
  std::weak_ptr<const void> watched;
  {
    std::vector<KVCache<KIVI>> forks;
    {
      KVCache loaded(Shape, KIVI{.group = 16, .residual = 16});
      SessionInMemory memory = mapped(session);
      watched = memory.owner;
      load(loaded, std::move(memory));
      forks.push_back(loaded.fork());
    }
    CHECK(!watched.expired());
    check_same_future(forks.front(), cache, text, 110);
  }
  CHECK(watched.expired());
}

TEST_CASE("A session in memory that begins at no multiple of 64 is copied", "[session]") {
  const LayeredTokens text(Shape, 200, 80);
  KVCache cache(Shape, KIVI{.group = 16, .residual = 16}), loaded(Shape, KIVI{.group = 16, .residual = 16});
  feed(cache, text, 100, 10);
  const Bytes session = saved(cache);
  Bytes shifted(session.size() + 128);
  const std::size_t at = 64 - reinterpret_cast<std::uintptr_t>(shifted.data()) % 64 + 8;
  std::memcpy(shifted.data() + at, session.data(), session.size());
  const std::span<const std::byte> bytes(shifted.data() + at, session.size());
  load(loaded, SessionInMemory{.bytes = bytes});
  CHECK(segments_in(loaded, bytes).first == 0);
  check_same_future(loaded, cache, text, 110);
}

TEST_CASE("A damaged session in memory is refused and leaves the cache as it was", "[session]") {
  const LayeredTokens text(Shape, 200, 81);
  KVCache cache(Shape, H2O{.budget = 30}), loaded(Shape, H2O{.budget = 30});
  feed(cache, text, 60, 0);
  feed(loaded, text, 40, 7);
  const Picture before = picture_of(loaded);
  const Bytes whole = saved(cache);
  for (std::size_t cut = 0; cut < whole.size(); cut += 97) {
    Bytes damaged = whole;
    if (cut % 2 == 0)
      damaged.resize(cut);
    else
      damaged[cut] ^= std::byte{4};
    INFO("damaged at " << cut);
    CHECK(error_text([&] { load(loaded, mapped(damaged)); }) != "");
    CHECK(difference({picture_of(loaded)}, {before}) == "");
  }
}

TEST_CASE("Forks that are saved together share their blocks on disk, and again when they are loaded", "[session]") {
  const LayeredTokens text(Shape, 400, 82);
  for (const PolicyCase& entry : all_policies()) {
    INFO(entry.text);
    const Stages stages = AnyPolicy::parse(entry.text).stages();
    std::vector<CacheCore> forks;
    forks.emplace_back(Shape, stages);
    feed(forks.front(), text, 100, 20);
    const std::size_t alone = saved(forks.front()).size();
    for (const std::size_t steps : {0u, 3u, 40u}) {
      forks.push_back(forks.front().fork());
      for (std::size_t step = 0; step < steps; ++step)
        for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
          Outputs out(Shape, 1);
          forks.back().decode(layer, text.tokens(layer, 120 + steps + step, 1), out.rows(0, 1));
        }
    }
    const Bytes session = saved(pointers(std::as_const(forks)));
    std::size_t apart = 0;
    for (const CacheCore& fork : forks) apart += saved(fork).size();
    CHECK(session.size() < apart);
    CHECK(session.size() >= alone);

    std::vector<CacheCore> loaded = empty_forks(stages, forks.size());
    const bool from_memory = entry.text.size() % 2 == 0;
    if (from_memory)
      load(pointers(loaded), mapped(session));
    else
      load(pointers(loaded), BytesSource(session));
    for (std::size_t i = 0; i < forks.size(); ++i) {
      INFO("fork " << i);
      CHECK(difference({picture_of(loaded[i])}, {picture_of(forks[i])}) == "");
    }
    CHECK((saved(pointers(std::as_const(loaded))) == session));
    for (std::size_t i = forks.size(); i-- > 0;) {
      INFO("fork " << i);
      check_same_future(loaded[i], forks[i], text, 200 + 20 * i);
    }
  }
}

TEST_CASE("Caches that are no forks of each other are not saved or loaded together", "[session]") {
  const Stages stages = AnyPolicy::parse("full").stages();
  CacheCore first(Shape, stages), second(Shape, stages);
  const std::array<const CacheCore*, 2> strangers{&first, &second}, twice{&first, &first};
  const auto sink = [](std::span<const std::byte>) { return true; };
  CHECK(error_text([&] { save(strangers, sink); }) == "save: caches 0 and 1 are not forks of the same cache");
  CHECK(error_text([&] { save(twice, sink); }) == "save: cache 1 was given twice");
  CHECK(error_text([&] { save(std::span<const CacheCore* const>(), sink); }) == "save: no cache was given");
  std::vector<CacheCore> forks = empty_forks(stages, 3);
  const Bytes three = saved(pointers(std::as_const(forks)));
  forks.pop_back();
  CHECK(error_text([&] { load(pointers(forks), BytesSource(three)); }) ==
        "load: the session has 3 caches that were saved together, but 2 are to be loaded");
}
