// Damaged sessions. Byte 0 chooses the policy, byte 1 how far its cache had come; from then on each change of the session that this
// cache saves is a byte, followed by its numbers. Changes within a section come with the checksum that fits, so that they reach
// what reads the section. Whatever comes, load() loads or refuses with a kvc::Error, and what was refused leaves the cache as it
// was; what was loaded must be fit to work with.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fuzz/fuzz_input.hpp"
#include "kvc/error.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/session/sections.hpp"
#include "support/all_policies.hpp"
#include "support/random_tokens.hpp"
#include "support/script.hpp"
#include "support/session_sections.hpp"

namespace {

using support::Bytes, support::Section, support::Sections;

const kvc::CacheShape Shape = support::small_shape();

/// Policies whose sessions have every kind of content.
constexpr const char* Policies[] = {
    "full",
    "full:bits=4,group=16",
    "kivi:bits=2,group=8,residual=16",
    "h2o:budget=30",
    "h2o:budget=24 | kivi:bits=4,group=8,residual=8",
    "streaming_llm:budget=20,positions=in_cache",
    "quest:tokens=16,page=4,dense_layers=0",
    "h2o:budget=24 | quest:tokens=12,page=4,dense_layers=0",
    "razor_attention:heads=none,budget=20",
    "r_kv:budget=20,interval=1",
    "d2o:budget=20,layer_budgets=false,sinks=2",
    "mini_cache:start=0",
    "streaming_llm:budget=30 | mini_cache:start=0 | kivi:group=8,residual=8",
    "think:window=8,pruned=0.5",
    "refit:policy=knorm,budget=33,bits=4,group=16",
    "ada_kv:base=h2o,budget=24",
    "tova:budget=24",
    "simlayerkv:threshold=0,recent=20",
    "rank_fusion:policies=knorm+(h2o:recent=0,normalize,when=prompt_end),budget=24",
    "cam:base=h2o,budget=24,neighbours=4",
};
constexpr std::size_t Ages = 3, Forks = 2, Prompt = 40;
constexpr auto Rows = static_cast<std::uint32_t>(kvc::session::Kind::rows);  // any bytes are rows

const support::LayeredTokens& text() {
  static const support::LayeredTokens tokens(Shape, 200, 5);
  return tokens;
}

void prefill(kvc::CacheCore& cache, std::size_t first, std::size_t count) {
  for (std::size_t layer = 0; layer < Shape.layers; ++layer)
    cache.prefill(layer, text().tokens(layer, first, count), {});
}
void decode(kvc::CacheCore& cache, std::size_t first, std::size_t count) {
  support::Outputs out(Shape, 1);
  for (std::size_t at = first; at < first + count; ++at)
    for (std::size_t layer = 0; layer < Shape.layers; ++layer)
      cache.decode(layer, text().tokens(layer, at, 1), out.rows(0, 1));
}

/// What a policy's caches have saved, and forks that sessions are loaded into.
struct Subject {
  kvc::Stages stages;
  std::vector<Sections> sessions;  ///< of a cache at several ages; the last one of forks that were saved together
  std::vector<kvc::CacheCore> used;
  std::vector<Bytes> before;  ///< the sessions of `used`

  explicit Subject(const char* policy) : stages(kvc::AnyPolicy::parse(policy).stages()) {
    for (const std::size_t steps : {0u, 30u, 80u}) {
      kvc::CacheCore cache(Shape, stages);
      prefill(cache, 0, Prompt);
      decode(cache, Prompt, steps);
      if (steps == 80) {  // context shift
        cache.remove(20, 35);
        cache.shift(35, cache.next_position(), -15);
      }
      sessions.emplace_back(support::saved(cache));
    }
    kvc::CacheCore cache(Shape, stages);
    prefill(cache, 0, Prompt);
    const kvc::CacheCore fork = cache.fork();
    decode(cache, Prompt, 40);
    const kvc::CacheCore* const forks[Forks] = {&fork, &cache};
    sessions.emplace_back(support::saved(forks));
    renew();
  }
  void renew() {
    used.clear();
    used.emplace_back(Shape, stages);
    prefill(used.front(), 20, 30);
    used.push_back(used.front().fork());
    decode(used.back(), 50, 5);
    before = sessions_of_used();
  }
  std::vector<Bytes> sessions_of_used() const {
    std::vector<Bytes> all;
    for (const kvc::CacheCore& cache : used) all.push_back(support::saved(cache));
    return all;
  }
};
Subject& subject(std::size_t number) {
  static std::unique_ptr<Subject> subjects[std::size(Policies)];
  if (!subjects[number]) subjects[number] = std::make_unique<Subject>(Policies[number]);
  return *subjects[number];
}

/// Places near the beginning of a content, where most of what is known of a head stands, come up more often.
std::size_t place(fuzz::Script& script, std::size_t size) {
  if (size == 0) return 0;
  const std::size_t kind = script.below(4), far = script.below(65536);
  return (kind == 0 ? far % std::min<std::size_t>(size, 64) : far) % size;
}

void change_content(Bytes& content, fuzz::Script& script) {
  static constexpr std::uint64_t Numbers[] = {0,
                                              1,
                                              2,
                                              3,
                                              16,
                                              0xff,
                                              0x100,
                                              0x7fff,
                                              0xffff,
                                              0x7fffffff,
                                              0xffffffff,
                                              0x100000000,
                                              std::uint64_t{1} << 40,
                                              std::uint64_t{1} << 63,
                                              ~std::uint64_t{0}};
  const std::size_t at = place(script, content.size());
  const auto begin = content.begin() + static_cast<std::ptrdiff_t>(at);
  const auto most = [&](std::size_t count) {
    return static_cast<std::ptrdiff_t>(std::min(count, content.size() - at));
  };
  switch (script.below(7)) {
    case 0:
      if (!content.empty()) content[at] ^= std::byte{1} << script.below(8);
      break;
    case 1:
      if (!content.empty()) content[at] = static_cast<std::byte>(script.byte());
      break;
    case 2: {
      const std::uint64_t number = Numbers[script.below(std::size(Numbers))];
      std::memcpy(content.data() + at, &number, static_cast<std::size_t>(most(std::size_t{1} << script.below(4))));
      break;
    }
    case 3: {  // a little more, or less
      const std::size_t bytes = static_cast<std::size_t>(most(8));
      std::uint64_t number = 0;
      std::memcpy(&number, content.data() + at, bytes);
      number += script.below(5) - 2;
      std::memcpy(content.data() + at, &number, bytes);
      break;
    }
    case 4:
      content.erase(begin, begin + most(1 + script.below(32)));
      break;
    case 5: {
      const Bytes piece(begin, begin + most(1 + script.below(32)));
      content.insert(begin, piece.begin(), piece.end());
      break;
    }
    default: {  // four bytes change places with others
      const std::size_t other = place(script, content.size());
      for (std::size_t i = 0; i < 4 && at + i < content.size() && other + i < content.size(); ++i)
        std::swap(content[at + i], content[other + i]);
    }
  }
}

/// Changes a session as the script says.
Bytes damaged(Sections sections, const Subject& other, fuzz::Script& script) {
  bool whole = true;
  for (std::size_t change = 0; !script.ended() && change < 8; ++change) {
    const std::size_t kind = script.below(16);
    std::size_t chosen = script.below(sections.sections.size());
    if (chosen > 0 && sections.sections[chosen].kind == Rows && script.below(4) != 0) --chosen;
    Section& section = sections.sections[chosen];
    if (kind < 11) {
      change_content(section.content, script);
    } else if (kind == 11) {
      const Sections& from = other.sessions[script.below(other.sessions.size())];
      section = from.sections[script.below(from.sections.size())];
    } else if (kind == 12) {
      std::swap(section, sections.sections[script.below(sections.sections.size())]);
    } else if (kind == 13) {
      (script.below(2) == 0 ? section.kind : section.encoding) = static_cast<std::uint32_t>(script.below(5));
    } else if (kind == 14) {
      sections.sections.erase(sections.sections.begin() +
                              static_cast<std::ptrdiff_t>(&section - sections.sections.data()));
      if (sections.sections.empty()) break;
    } else {
      whole = false;
    }
  }
  Bytes session = sections.session();
  if (!whole && !session.empty()) {  // damage that no checksum knows of
    const std::size_t at = script.below(65536) % session.size();
    if (script.below(2) == 0)
      session.resize(at);
    else
      session[at] ^= std::byte{1} << script.below(8);
  }
  return session;
}

/// A cache that was loaded does everything that a cache does, or refuses it.
void use(kvc::CacheCore& cache) {
  const Bytes again = support::saved(cache);
  const auto attempt = [&](auto call) {
    try {
      call();
    } catch (const kvc::Error&) {
    }
  };
  support::Outputs out(Shape, 1);
  attempt([&] { cache.attend(1, text().tokens(1, 0, 1).q, out.rows(0, 1)); });
  static_cast<void>(support::picture_of(cache));
  attempt([&] { decode(cache, 150, 6); });
  attempt([&] { prefill(cache, 160, 12); });
  attempt([&] { cache.compress(); });
  attempt([&] { decode(cache, 172, 10); });
  attempt([&] { static_cast<void>(cache.truncate(30)); });
  attempt([&] { decode(cache, 182, 4); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // A short input stands for a script of many changes: the inputs that are made are mostly short.
  std::vector<std::uint8_t> bytes(data, data + size);
  std::seed_seq seed(bytes.begin(), bytes.end());
  std::mt19937 random(seed);
  for (std::size_t more = random() % 40; more > 0; --more) bytes.push_back(static_cast<std::uint8_t>(random()));
  fuzz::Script script(bytes.data(), bytes.size());
  const std::size_t policy = script.below(std::size(Policies));
  Subject& chosen = subject(policy);
  const std::size_t age = script.below(Ages + 1), loaded = age < Ages ? 1 : Forks;
  const Sections& sections = chosen.sessions[age];
  const Bytes session = damaged(sections, subject(script.below(std::size(Policies))), script);
  std::vector<kvc::CacheCore*> forks;
  for (std::size_t i = 0; i < loaded; ++i) forks.push_back(&chosen.used[i]);
  // Where caches read rows as they lie in memory, none of them may write there.
  kvc::SessionInMemory lying;
  if (script.below(2) != 0) lying = support::in_memory(session);
  try {
    if (lying.owner)
      kvc::load(forks, lying);
    else
      kvc::load(forks, support::BytesSource(session));
  } catch (const kvc::Error& error) {
    if (error.code() != kvc::ErrorCode::bad_file && error.code() != kvc::ErrorCode::incompatible)
      fuzz::fail(std::string(Policies[policy]) + ": a session was refused with another code: " + error.what());
    if (chosen.sessions_of_used() != chosen.before)
      fuzz::fail(std::string(Policies[policy]) + ": a session that was refused changed the cache: " + error.what());
    return 0;
  }
  for (std::size_t i = loaded; i-- > 0;) use(chosen.used[i]);
  if (lying.owner && !std::ranges::equal(lying.bytes, session))
    fuzz::fail(std::string(Policies[policy]) + ": rows that were lent were written to");
  chosen.renew();
  fuzz::note_understood();
  return 0;
}
